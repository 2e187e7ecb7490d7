"""Makes, opens and removes the two files of a shared-memory transfer: the arena, and the table of its leases.

The owner holds a lock (``flock``) on the table as long as it lives. So every process can tell whether the owner has
died, also from another process namespace, and remove the files that it left behind.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path

from triptych.aio import leftovers

FOLDER = Path("/dev/shm")
_PREFIX = "triptych-"
_ARENA = ".arena"
_TABLE = ".leases"
_NEW = ".new"
_NEW_FILE_GRACE_S = 60.0
"""The age at which an unfinished table is taken for a dead owner's."""
_OWNER = re.compile(r"shm-\d{1,10}-[0-9a-f]{16}")


def is_owner(id: str) -> bool:
    """Returns whether ``id`` has the form of an owner's id; no other id may become part of a path."""
    return _OWNER.fullmatch(id) is not None


def arena_path(folder: Path, owner: str) -> Path:
    return folder / f"{_PREFIX}{owner}{_ARENA}"


def table_path(folder: Path, owner: str) -> Path:
    return folder / f"{_PREFIX}{owner}{_TABLE}"


def create(folder: Path, owner: str) -> tuple[int, int]:
    """Makes an empty arena and an empty, locked table, and returns their descriptors. Raises OSError."""
    path = table_path(folder, owner)
    new = path.with_name(path.name + _NEW)
    for made in _paths(folder, owner):
        leftovers.add(made)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    table = os.open(new, flags, 0o600)
    try:
        fcntl.flock(table, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(path)  # only now, so that nobody takes an unlocked table for a dead owner's
        return os.open(arena_path(folder, owner), flags, 0o600), table
    except OSError:
        remove(folder, owner)
        new.unlink(missing_ok=True)
        os.close(table)
        raise


def open_remote(path: Path, flags: int, min_bytes: int) -> tuple[int, int]:
    """Opens another process's file and returns its descriptor and size.

    Raises OSError unless it is a plain file of this user, of at least ``min_bytes``.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_size < min_bytes:
        os.close(fd)
        raise OSError(f"{path.name} is not a transfer's file")
    return fd, found.st_size


def is_alive(table: int) -> bool:
    """Returns whether the owner of this open table lives."""
    try:
        fcntl.flock(table, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(table, fcntl.LOCK_UN)
    return False


def remove(folder: Path, owner: str) -> None:
    """Removes an owner's files. Processes that have them mapped keep the memory until they unmap it."""
    arena_path(folder, owner).unlink(missing_ok=True)
    table_path(folder, owner).unlink(missing_ok=True)
    for path in _paths(folder, owner):
        leftovers.discard(path)


def _paths(folder: Path, owner: str) -> tuple[Path, Path, Path]:
    table = table_path(folder, owner)
    return arena_path(folder, owner), table, table.with_name(table.name + _NEW)


def remove_dead(folder: Path) -> None:
    """Removes the files of owners that died without removing them. Errors are ignored: they are other users' files."""
    for path in folder.glob(f"{_PREFIX}shm-*{_TABLE}"):
        owner = path.name.removeprefix(_PREFIX).removesuffix(_TABLE)
        with suppress(OSError):
            if is_owner(owner):
                _remove_if_dead(folder, owner, path)
    for path in folder.glob(f"{_PREFIX}shm-*{_TABLE}{_NEW}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _NEW_FILE_GRACE_S:
                path.unlink()


def _remove_if_dead(folder: Path, owner: str, path: Path) -> None:
    table, _ = open_remote(path, os.O_RDWR, 0)
    try:
        if not is_alive(table):
            remove(folder, owner)
    finally:
        os.close(table)
