"""Reads the environment; no other module does, except ``config.credentials`` for secrets."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import or_all

RUN_DIR = "TRIPTYCH_RUN_DIR"
LOG_LEVEL = "TRIPTYCH_LOG_LEVEL"
HEARTBEAT = "TRIPTYCH_HEARTBEAT"

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_libc = ctypes.CDLL(None)
_libc.getenv.argtypes = [ctypes.c_char_p]
_libc.getenv.restype = ctypes.c_void_p


def run_dir(configured: str = "") -> Path:
    """Returns the run directory: as configured, else ``TRIPTYCH_RUN_DIR``, else one of this user's own."""
    return chosen_run_dir(configured) or default_run_dir()


def chosen_run_dir(configured: str = "") -> Path | None:
    """Returns the run directory that the user has named, by a flag, in a graph or by ``TRIPTYCH_RUN_DIR``."""
    name = configured or os.environ.get(RUN_DIR)
    return Path(name).absolute() if name else None


def default_run_dir() -> Path:
    """Returns the run directory of processes that are started by hand, if the user has named none."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base) / f"triptych-{os.getuid()}"


def model_files_cache(configured: str = "") -> Path:
    """Returns where a frontend keeps models' descriptive files: as configured, else in this user's cache."""
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "triptych" / "model-files"


def hub_cache() -> Path:
    """Returns where Hugging Face's library keeps its downloads, by its own variables."""
    if from_env := os.environ.get("HF_HUB_CACHE"):
        return Path(from_env).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def log_level() -> str:
    """Returns the level of the log. Raises ConfigError for a level that is none of ``LOG_LEVELS``."""
    level = (os.environ.get(LOG_LEVEL) or "INFO").upper()
    if level not in LOG_LEVELS:
        raise ConfigError(f"{LOG_LEVEL} is {level!r}{or_all(level, LOG_LEVELS)}")
    return level


def heartbeat() -> Path | None:
    """Returns the file that this process touches as a sign of life to its supervisor; None without a supervisor."""
    path = os.environ.get(HEARTBEAT)
    return Path(path) if path else None


def is_set(name: str) -> bool:
    """Tells whether the user has set a variable that a library reads."""
    return bool(os.environ.get(name))


def set_default(name: str, value: str) -> None:
    """Sets a variable that a library reads, unless the user has set it."""
    os.environ.setdefault(name, value)


def has_default(name: str, value: str) -> bool:
    """Tells whether the variable ``name`` has the ``value`` that ``set_default`` gave it, and not the user's own."""
    return os.environ.get(name) == value


def take(name: str) -> str | None:
    """Removes a variable from the environment and returns its value, or None if it is not set or empty.

    Its value is overwritten in memory too, since ``/proc/self/environ`` shows what the process was started with.
    """
    if name not in os.environ:
        return None
    if address := _libc.getenv(os.fsencode(name)):
        ctypes.memset(address, 0, len(ctypes.string_at(address)))
    return os.environ.pop(name) or None


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Returns this process's environment with ``extra`` added, for a child."""
    return {**os.environ, **extra}


def bare_environment() -> dict[str, str]:
    """Returns the few variables that a Python process of ours needs, for a child that reads untrusted data.

    A list names them, so no secret is among them. Libraries for numbers get one thread.
    """
    kept = {name: value for name, value in os.environ.items() if name in _BARE or name.startswith("LC_")}
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**kept, **dict.fromkeys(_THREADS, "1"), "PYTHONPATH": os.pathsep.join(filter(None, path))}


_BARE = {
    "HOME",  # where packages of this user's own are
    "LANG",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONNOUSERSITE",
    "PYTHONPYCACHEPREFIX",
    "PYTHONUSERBASE",
    "TZ",
}
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def limit_tokenizer_threads() -> None:
    """Makes the `fastokens` library tokenise in its caller's thread alone, unless the environment says otherwise.

    Each thread of its own would keep a table of words of up to 100 MB, and spin for a while after each text.
    """
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
