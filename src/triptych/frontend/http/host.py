"""Refuses pages of other sites that reach a server on loopback under a name of their own (DNS rebinding). Pure.

The browser of such a page takes the server for the page's own, and lets the page send and read anything. Its requests
carry the page's name in ``Host``, which no client of a server on loopback does. A server that demands an API key
needs no such check, because the page does not know the key.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from triptych.contracts.errors import Forbidden
from triptych.contracts.shown import shown
from triptych.frontend.http.asgi import Scope, header

_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")
_LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""Endings of names that the Internet's DNS does not resolve."""


class HostCheck:
    """Checks the name by which a client addresses the server."""

    def __init__(self, listens_at: str, *, has_key: bool, allowed: str) -> None:
        """``allowed`` has further names, separated by commas; ``*`` allows any name."""
        self._allowed = frozenset(name.strip().lower() for name in allowed.split(",") if name.strip())
        self._is_on = is_loopback(listens_at) and not has_key and "*" not in self._allowed
        self._last_good = b""
        """The last header that was allowed: nearly all requests have the same."""

    def check(self, scope: Scope) -> None:
        """Raises Forbidden for a name that the Internet's DNS may resolve, and that is not allowed."""
        if not self._is_on or (given := header(scope, b"host")) is None or given == self._last_good:
            return
        found = _HOST.fullmatch(given.decode("latin-1").lower())
        name = found[1].rstrip(".") if found is not None else ""
        if found is None or not (_is_local(name) or name in self._allowed):
            raise Forbidden(
                f"this server listens on loopback only, and does not take requests for {shown(given)}: a page of that "
                "name may have led a browser here. Its operator can allow the name by --allowed-hosts, or set an API "
                "key",
                code="host_not_allowed",
            )
        self._last_good = given


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach a server that listens at ``host``."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_local(name: str) -> bool:
    """Returns whether ``name`` is an address, or a name that the Internet's DNS does not resolve.

    The names that it resolves have a dot.
    """
    if "." not in name or name.endswith(_LOCAL_ENDINGS):
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
