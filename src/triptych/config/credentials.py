"""Reads secrets once when a command starts. After that they are in no environment and on no command line.

Each may be given in a variable, or in a file that the variable with ``_FILE`` at the end of its name names. Processes
of ``triptych up`` get theirs from their supervisor, through a pipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from triptych.config import env
from triptych.contracts.errors import ConfigError

TOKEN = "TRIPTYCH_TOKEN"
API_KEY = "TRIPTYCH_API_KEY"
ADMIN_KEY = "TRIPTYCH_ADMIN_KEY"
NATS_PASSWORD = "TRIPTYCH_NATS_PASSWORD"
NATS_TOKEN = "TRIPTYCH_NATS_TOKEN"
NAMES = (TOKEN, API_KEY, ADMIN_KEY, NATS_PASSWORD, NATS_TOKEN)
OF_WORKERS = (TOKEN, NATS_PASSWORD, NATS_TOKEN)
"""The secrets that workers need, without the keys that clients and operators send."""
MAX_FILE_BYTES = 64 * 1024

_received: dict[str, str] = {}
_known: dict[str, str] = {}


def receive(values: Mapping[str, str]) -> None:
    """Takes over the secrets that a supervisor sent. They take precedence over those that ``read`` finds."""
    _received.update({name: values[name] for name in NAMES if name in values})


def read() -> None:
    """Reads this process's secrets and removes them from its environment.

    Raises ConfigError for a file that cannot be read, and if a secret is given twice.
    """
    _known.clear()
    for name in NAMES:
        value, file = env.take(name), env.take(file_variable(name))
        if value and file:
            raise ConfigError(f"{name} and {file_variable(name)} are both set; set one of them")
        if found := value or (_content(file_variable(name), Path(file)) if file else None):
            _known[name] = found
    _known.update(_received)


def adopt(values: Mapping[str, str]) -> None:
    """Takes over the secrets of the deployment that this process joins. They take precedence over what ``read``
    found."""
    _known.update({name: values[name] for name in NAMES if name in values})


def some(names: Iterable[str]) -> dict[str, str]:
    """Returns the known secrets among ``names``, for a child that needs them."""
    return {name: _known[name] for name in names if _known.get(name)}


def plane_token() -> str | None:
    """Returns the shared secret of the request plane and of ZMQ's event ports, as the user has set it."""
    return _known.get(TOKEN) or None


def api_key() -> str | None:
    """Returns the key that clients must send, unless it is given as a flag (which the ``ps`` of other users would
    show).
    """
    return _known.get(API_KEY) or None


def admin_key() -> str | None:
    """Returns the key that operators must send, unless it is given as a flag."""
    return _known.get(ADMIN_KEY) or None


def nats_password() -> str | None:
    """Returns the password of the user that the plane's URL names."""
    return _known.get(NATS_PASSWORD) or None


def nats_token() -> str | None:
    """Returns the token that a NATS server wants, or that ``triptych nats`` is to want."""
    return _known.get(NATS_TOKEN) or None


def file_variable(name: str) -> str:
    """Returns the variable that names the file of the secret ``name``."""
    return f"{name}_FILE"


def _content(variable: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"{variable}={path}: cannot be read: {reason}") from error
    if not text or "\n" in text:
        raise ConfigError(f"{variable}={path}: must hold one line")
    return text
