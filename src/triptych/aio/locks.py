"""Locks files: a sign that a process is alive, which the system takes away however the process ends.

A lock belongs to the opened file: a forked process holds it too, an executed program does not. Only files of this user
are locked, and never through a symbolic link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_PAUSE_S = 0.02
CLAIM_S = 0.3
"""How long ``claim`` waits for processes that only test whether a file is locked, and hold the lock meanwhile."""
LAST_S = 0.5
"""How long ``is_only_holder`` waits for processes that were just killed to lose their share of a lock."""


def new_shared(path: Path) -> int:
    """Makes the file ``path`` and returns its descriptor. This process shares its lock before others can see the file.

    Raises OSError.
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
    """Takes a share of the lock of the existing file ``path`` until this process ends.

    Returns its descriptor, or None if a process holds the lock alone. Raises OSError, also if ``path`` is not a file of
    this user.
    """
    return _locked(path, os.open(path, _FLAGS), fcntl.LOCK_SH)


def lock_if_free(path: Path) -> int | None:
    """Locks the existing file ``path`` for this process alone. Returns and raises as ``share`` does."""
    return _locked(path, os.open(path, _FLAGS))


def is_only_holder(fd: int) -> bool:
    """Turns the shared lock of ``fd`` into one that this process holds alone. Blocks for up to ``LAST_S``.

    Returns False if others still share the lock after that.
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
    """Locks the file ``path`` for this process alone and makes it if it does not exist.

    Returns its descriptor, or None if another process has it locked. Blocks for up to ``wait_s`` and tries every
    ``pause_s``. Raises OSError as ``lock_if_free`` does.
    """
    deadline = time.monotonic() + wait_s
    while True:
        with suppress(FileNotFoundError):  # another process has just released it
            if (fd := _locked(path, os.open(path, _FLAGS | os.O_CREAT, 0o600))) is not None:
                return fd
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause_s)


def release(path: Path, fd: int) -> None:
    """Removes a file that this process has locked, then gives up the lock."""
    with suppress(OSError):
        path.unlink()
    os.close(fd)


def is_held(path: Path) -> bool:
    """Returns whether a living process has the file ``path`` locked. False if there is no such file of this user."""
    try:
        fd = lock_if_free(path)
    except OSError:
        return False
    if fd is not None:
        os.close(fd)
    return fd is None


def _locked(path: Path, fd: int, how: int = fcntl.LOCK_EX) -> int | None:
    """Locks ``fd`` and returns it if it still is the file ``path``; closes it and returns None otherwise. Raises
    OSError."""
    kept = False
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it is not a file of this user's", str(path))
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        kept = os.path.samestat(found, path.lstat())
    except BlockingIOError:
        return None
    finally:
        if not kept:
            os.close(fd)
    return fd if kept else None
