"""Checks, before a request's body is read, whether the client may ask: API key, host name and origin."""

from __future__ import annotations

import hashlib
import hmac

from triptych.config.serve import FrontendConfig
from triptych.contracts.errors import ConfigError, Forbidden, Unauthorized
from triptych.frontend.http.asgi import Scope, header
from triptych.frontend.http.cors import Cors
from triptych.frontend.http.host import HostCheck


class Access:
    """The access rules of one frontend."""

    def __init__(self, config: FrontendConfig) -> None:
        """Raises ConfigError for an invalid origin, and if every client would have the admin key."""
        self._key = None if config.api_key is None else config.api_key.encode()
        self._admin_key = None if config.admin_key is None else config.admin_key.encode()
        if self._admin_key is not None and self._admin_key == self._key:
            raise ConfigError("the admin key is the API key, which every client has: give it another value")
        self._host = HostCheck(config.host, has_key=self._key is not None, allowed=config.allowed_hosts)
        self.cors = Cors(config.allowed_origins)

    def check(self, scope: Scope) -> None:
        """Raises Unauthorized without the API key, and Forbidden for a host name that is not this server's."""
        self._host.check(scope)
        if self._key is not None and not hmac.compare_digest(_bearer(scope), self._key):
            raise Unauthorized("a valid API key is required: Authorization: Bearer KEY", code="invalid_api_key")

    def check_admin(self, scope: Scope) -> None:
        """Raises Forbidden if no admin key is set, and Unauthorized for a request without it."""
        if self._admin_key is None:
            raise Forbidden(
                "the administrative routes are off: start the frontend with TRIPTYCH_ADMIN_KEY or --admin-key",
                code="admin_off",
            )
        if not hmac.compare_digest(_bearer(scope), self._admin_key):
            raise Unauthorized("the admin key is required: Authorization: Bearer KEY", code="invalid_admin_key")

    def tenant(self, scope: Scope) -> str:
        """Returns the name of the tenant that asks: a digest of its API key, empty if no key is required."""
        return "" if self._key is None else hashlib.sha256(_bearer(scope)).hexdigest()


def _bearer(scope: Scope) -> bytes:
    """Returns the key that a request brings, empty if it brings none."""
    scheme, _, key = (header(scope, b"authorization") or b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""
