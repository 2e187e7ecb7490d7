"""Locked files: a sign that a process is alive, which the system takes away however the process ends.

A lock belongs to the opened file: processes that were forked with it hold it too, those that were executed do not.
Only files of this user are locked, and never through a symbolic link.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_PAUSE_S = 0.02
CLAIM_S = 0.3
"""Time for others that only look whether a file is locked, and hold the lock meanwhile."""
LAST_S = 0.5
"""Time for processes that were killed just now to let go of what they share."""


def new_shared(path: Path) -> int:
    """Make the file ``path``, which this process shares from the moment that others can see it.

    Returns its descriptor. Raises OSError.
    """
    part = path.with_name(f"{path.name}.part")
    fd = os.open(part, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        part.rename(path)
    except OSError:
        os.close(fd)
        part.unlink(missing_ok=True)
        raise
    return fd


def share(path: Path) -> int | None:
    """Lock the file ``path``, which must be there, together with others that share it, until this process ends.

    Returns its descriptor, or None where a process has locked it alone. Raises OSError, also for what is no file of
    this user's.
    """
    return _locked(path, os.open(path, _FLAGS), fcntl.LOCK_SH)


def lock_if_free(path: Path) -> int | None:
    """Lock the file ``path``, which must be there, alone. Otherwise as ``share``."""
    return _locked(path, os.open(path, _FLAGS))


def is_only_holder(fd: int) -> bool:
    """Turn the shared lock of ``fd`` into one that this process holds alone.

    False where others share it, too, and still do after ``LAST_S``.
    """
    deadline = time.monotonic() + LAST_S
    while True:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE_S)


def claim(path: Path, wait_s: float = CLAIM_S, pause_s: float = _PAUSE_S) -> int | None:
    """Lock the file ``path``, which is made if need be. Returns its descriptor, or None where a process has it locked.

    Blocks for up to ``wait_s``, looking every ``pause_s``. Raises OSError as ``lock_if_free``.
    """
    deadline = time.monotonic() + wait_s
    while True:
        with suppress(FileNotFoundError):  # it was released just now
            if (fd := _locked(path, os.open(path, _FLAGS | os.O_CREAT, 0o600))) is not None:
                return fd
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause_s)


def release(path: Path, fd: int) -> None:
    """Remove a file that this process has locked, then let go of the lock."""
    with suppress(OSError):
        path.unlink()
    os.close(fd)


def is_held(path: Path) -> bool:
    """Whether a living process has the file ``path`` locked; False where there is no such file of this user's."""
    try:
        fd = lock_if_free(path)
    except OSError:
        return False
    if fd is not None:
        os.close(fd)
    return fd is None


def _locked(path: Path, fd: int, how: int = fcntl.LOCK_EX) -> int | None:
    """``fd``, locked, if it is the file ``path`` still; else it is closed."""
    kept = False
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(f"{path} is not a file of this user's")
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        kept = os.path.samestat(found, path.lstat())
    except BlockingIOError:
        return None
    finally:
        if not kept:
            os.close(fd)
    return fd if kept else None
