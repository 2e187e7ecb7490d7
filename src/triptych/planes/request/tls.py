"""Sets up TLS for the request plane: a process's own certificate and key, and the authority that it trusts.

A listener speaks TLS if it has a certificate, and demands one from its callers if it also has an authority. A caller
speaks TLS if it has an authority, and shows its own certificate if it has one. Peers are always verified.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from triptych.contracts.errors import ConfigError

log = logging.getLogger("triptych.request")

HANDSHAKE_TIMEOUT_S = 5.0
"""The time for a caller to complete the TLS handshake; after that its connection is closed."""
SHUTDOWN_TIMEOUT_S = 5.0
"""The time for a peer to close its side after this one."""


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The names of PEM files, each empty if there is none."""

    cert: str = ""
    key: str = ""
    ca: str = ""

    def for_listening(self) -> ssl.SSLContext | None:
        """Returns the settings of a server; None without TLS. Raises ConfigError for files that cannot be used."""
        if not self.cert:
            if self.ca or self.key:
                raise ConfigError("--tls-ca and --tls-key at a worker need --tls-cert, the worker's own certificate")
            return None
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = _Answering
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0  # connections are kept: none is resumed
        if self.ca:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def for_calling(self) -> ssl.SSLContext | None:
        """Returns the settings of a client; None without TLS. Raises ConfigError for files that cannot be used."""
        if not self.ca:
            if self.cert or self.key:
                raise ConfigError("--tls-cert and --tls-key at a frontend need --tls-ca: who vouches for the workers")
            return None
        return self._context(ssl.PROTOCOL_TLS_CLIENT)  # which verifies certificates and the hosts that they name

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca:
            with _config_errors("--tls-ca", self.ca):
                context.load_verify_locations(self.ca)
        if self.cert:
            with _config_errors("--tls-cert", self.cert, *(("--tls-key", self.key) if self.key else ())):
                context.load_cert_chain(self.cert, self.key or None, password=_no_password)
        if self.key and not self.cert:
            raise ConfigError("--tls-key needs --tls-cert, the certificate that it belongs to")
        return context


class _Answering(ssl.SSLObject):
    """Logs handshakes that fail at the listening end, which event loops do not report."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            log.warning("closing a connection of the request plane: TLS: %s", reason(error))
            raise


@contextmanager
def _config_errors(*words: str) -> Iterator[None]:
    """Turns errors about unusable files within the block into ConfigError that begins with the flags at fault."""
    try:
        yield
    except ssl.SSLError as error:
        why = reason(error) if error.reason else "not PEM with all that belongs there"
        raise ConfigError(f"{' '.join(words)}: cannot be used: {why}") from error
    except OSError as error:
        raise ConfigError(f"{' '.join(words)}: cannot be used: {error.strerror}") from error


def reason(error: ssl.SSLError) -> str:
    """Returns OpenSSL's words for the failure, without its file and line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).replace("_", " ").lower()


def _no_password() -> str:
    raise ConfigError("--tls-key: the key is encrypted; nobody is there to be asked for its password")
