"""Reads how to reach a NATS server: addresses and credentials, checked before any connection."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from triptych.contracts.errors import ConfigError

SCHEMES = ("nats", "tls")
CREDS_MARK = "-----BEGIN NATS USER JWT-----"


class NatsSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """Secrets from the environment; never shown."""

    password: str | None = None
    token: str | None = None


class NatsAccess(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses to connect to, and the credentials."""

    servers: tuple[str, ...]
    """The servers as ``nats://host:port``, without secrets, so that they can be shown."""
    user: str | None = None
    password: str | None = None
    token: str | None = None
    creds_file: str | None = None
    """A file of a JWT and its key, as ``nsc`` writes it."""
    wants_tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""

    def __str__(self) -> str:
        return ", ".join(self.servers)

    def tls_context(self) -> ssl.SSLContext:
        """Returns the TLS settings. Raises ConfigError for files that cannot be read."""
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--nats-ca, --nats-cert, --nats-key: cannot be used: {error}") from error
        return context


def read_access(
    plane: str, secrets: NatsSecrets, *, credentials: str = "", ca: str = "", cert: str = "", key: str = ""
) -> NatsAccess:
    """Reads ``--plane`` (URLs, separated by commas) and the options that belong to it. Raises ConfigError."""
    if key and not cert:
        raise ConfigError("--nats-key needs --nats-cert, the certificate that it belongs to")
    urls = [_Url.parse(word) for word in plane.split(",")]
    users = {url.user for url in urls}
    if len(users) > 1:
        raise ConfigError("--plane: name the same user in all URLs")
    return _with_credentials(
        NatsAccess(
            servers=tuple(url.server for url in urls),
            user=users.pop(),
            wants_tls=bool(ca or cert) or any(url.server.startswith("tls:") for url in urls),
            ca=ca,
            cert=cert,
            key=key,
        ),
        secrets,
        credentials,
    )


class _Url(msgspec.Struct, frozen=True):
    server: str
    user: str | None

    @classmethod
    def parse(cls, word: str) -> _Url:
        shape = "must look like nats://host:4222, nats://user@host:4222 or tls://host:4222"
        try:
            parts = urlsplit(word.strip())
            port = parts.port or 4222
        except ValueError as error:
            raise ConfigError(f"--plane: a URL of it has a wrong port or host; it {shape}") from error
        if parts.password is not None:  # other users can read the command line
            raise ConfigError(
                "--plane: leave the password out of the URL; give it as TRIPTYCH_NATS_PASSWORD, or --nats-credentials"
            )
        if parts.scheme not in SCHEMES or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigError(f"--plane {word}: {shape}")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{parts.scheme}://{host}:{port}", parts.username or None)


def _with_credentials(access: NatsAccess, secrets: NatsSecrets, file: str) -> NatsAccess:
    if file:
        access = _from_file(access, Path(file))
    else:
        access = msgspec.structs.replace(access, password=secrets.password, token=secrets.token)
    if access.user and not (access.password or access.creds_file):
        raise ConfigError(
            f"--plane: user {access.user} needs a password: TRIPTYCH_NATS_PASSWORD, or --nats-credentials"
        )
    if access.password and not access.user:
        raise ConfigError("TRIPTYCH_NATS_PASSWORD needs a user: --plane nats://user@host:4222")
    return access


def _from_file(access: NatsAccess, path: Path) -> NatsAccess:
    """Reads a ``.creds`` file, or one line: ``user:password``, a password if the URL has the user, or a token."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"--nats-credentials {path}: cannot be read: {reason}") from error
    if CREDS_MARK in text:
        return msgspec.structs.replace(access, creds_file=str(path))
    if not text or "\n" in text:
        raise ConfigError(f"--nats-credentials {path}: must be a .creds file, or one line: user:password or a token")
    user, colon, password = text.partition(":")
    if access.user:
        same = colon and user == access.user
        return msgspec.structs.replace(access, password=password if same else text)
    if colon:
        return msgspec.structs.replace(access, user=user, password=password)
    return msgspec.structs.replace(access, token=text)
