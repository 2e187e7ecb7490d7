"""Tells browsers which other sites' pages may use this server (the Fetch standard's CORS protocol). Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from triptych.contracts.errors import ConfigError, Forbidden
from triptych.contracts.shown import shown
from triptych.frontend.http.asgi import Headers, Scope, header

ANY = "*"
EXPOSED = b"x-request-id, x-triptych-ignored, x-triptych-plan, retry-after"
"""The answers' headers that pages may read, in addition to those that browsers always let them read."""
MAX_AGE_S = 600
"""How long a browser may keep the answer to a preflight."""
MAX_ASKED_BYTES = 4096
"""The most bytes of the header names that a page asks to send."""
_NAMES = re.compile(rb"[\w!#$%&'*+.^`|~ ,-]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Cors:
    """The rules of ``--allowed-origins``."""

    def __init__(self, allowed: str) -> None:
        """``allowed`` is empty, ``*``, or origins separated by commas. Raises ConfigError for an invalid origin."""
        names = [name.strip() for name in allowed.split(",") if name.strip()]
        self._any = ANY in names
        self._origins = frozenset(_origin(name) for name in names if name != ANY)

    def __bool__(self) -> bool:
        return self._any or bool(self._origins)

    def allows(self, origin: bytes) -> bool:
        """Returns whether pages of ``origin`` may use this server."""
        return self._any or origin.lower() in self._origins

    def headers(self, scope: Scope) -> Headers:
        """Returns the headers that every answer to this request has, errors and streams included."""
        if not self:
            return []
        headers: Headers = [(b"vary", b"Origin")]  # so that no cache gives one site the answer that another may read
        origin = header(scope, b"origin")
        if origin is None or not self.allows(origin):
            return headers
        headers += [(b"access-control-allow-origin", b"*" if self._any else origin)]
        if not self._any:
            headers.append((b"access-control-allow-credentials", b"true"))
        return [*headers, (b"access-control-expose-headers", EXPOSED)]

    def asks(self, scope: Scope) -> bool:
        """Returns whether this is a preflight or another OPTIONS request, which carries no API key."""
        return bool(self) and scope["method"] == "OPTIONS"

    def answer(self, scope: Scope, methods: list[str]) -> Headers:
        """Returns the headers of a preflight's answer, beside ``headers``. Raises Forbidden for other sites' pages."""
        origin = header(scope, b"origin")
        if origin is None or header(scope, b"access-control-request-method") is None:
            return [(b"allow", ", ".join(methods).encode())]
        if not self.allows(origin):
            raise Forbidden(
                f"pages of {shown(origin)} may not use this server; its operator can allow them by --allowed-origins",
                code="origin_not_allowed",
            )
        asked = header(scope, b"access-control-request-headers") or b""
        if len(asked) > MAX_ASKED_BYTES or not _NAMES.fullmatch(asked):
            raise Forbidden("Access-Control-Request-Headers is too long, or no list of names", code="headers_refused")
        headers: Headers = [
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-allow-headers", asked or b"authorization, content-type"),
            (b"access-control-max-age", str(MAX_AGE_S).encode()),
        ]
        if header(scope, b"access-control-request-private-network") == b"true":
            headers.append((b"access-control-allow-private-network", b"true"))
        return headers


def _origin(written: str) -> bytes:
    """Returns an origin as browsers write it. Raises ConfigError if it is invalid."""
    try:
        parts = urlsplit(written.lower())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not plain:
        raise ConfigError(f"--allowed-origins: {written!r} is no origin such as https://chat.example:8443, and not *")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    ending = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{ending}".encode()
