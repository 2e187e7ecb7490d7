"""Removes files and folders that must not outlive this process.

Their owners remove them when they close. A process that is stopped while it starts, or that is told twice to stop, ends
without closing anything: it calls ``remove_all`` instead. Any thread may call these functions.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from triptych.aio import locks

_paths: dict[Path, Callable[[Path], None]] = {}


def add(path: Path, remove: Callable[[Path], None] | None = None) -> None:
    """Registers ``path``, which need not exist yet, for ``remove_all``. ``remove`` takes the place of deleting it."""
    _paths[path] = remove or _remove


def discard(path: Path) -> None:
    """Forgets ``path``, which its owner has removed. Unknown paths are ignored."""
    _paths.pop(path, None)


def remove_all() -> None:
    """Removes everything that was added and not discarded. Never raises."""
    for path, remove in reversed(list(_paths.items())):
        with suppress(OSError):
            remove(path)
        discard(path)


def _remove(path: Path) -> None:
    path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path, ignore_errors=True)


LOCK_NAME = ".triptych-lock"
_PREFIXES = ("triptych-", "nats-")
"""The beginnings that names of private folders may have."""


class PrivateFolder:
    """Makes a temporary folder that only this user can read. ``close`` removes it with all that is in it.

    A locked file in it shows that its owner is alive, or a process that uses it (``share``). When all of them were
    killed, ``remove_abandoned`` removes the folder.
    """

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        """``prefix`` begins with one of ``_PREFIXES``. The folder is made in ``parent``, or else among temporary
        files."""
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._lock: int | None = None
        self._closed = False
        add(self.path, lambda _: self.close())
        with suppress(OSError):  # the file system has no locks; then no other process removes the folder
            self._lock = locks.new_shared(self.path / LOCK_NAME)

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keep(self) -> None:
        """Leaves the folder to the next command of this user, which removes it. Takes the place of ``close``."""
        self._closed = True
        discard(self.path)
        if self._lock is not None:
            os.close(self._lock)

    def close(self) -> None:
        """Removes the folder, unless another process still uses it. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._lock is None or locks.is_only_holder(self._lock):
            shutil.rmtree(self.path, ignore_errors=True)
        discard(self.path)
        if self._lock is not None:
            os.close(self._lock)


def share(folder: Path) -> None:
    """Keeps ``folder`` from being removed until this process ends, if it is a private folder of another process."""
    with suppress(OSError):
        locks.share(folder / LOCK_NAME)


def remove_abandoned(parent: Path | None = None) -> None:
    """Removes this user's private folders whose owners were killed, in ``parent`` or else among temporary files.

    Never raises. A folder without a lock file stays, because it may be in use.
    """
    parent = parent or Path(tempfile.gettempdir())
    with suppress(OSError), os.scandir(parent) as entries:
        found = [parent / entry.name for entry in entries if entry.name.startswith(_PREFIXES)]
        for path in found:
            with suppress(OSError):
                _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    """Removes one private folder if its owner was killed. Raises OSError if that fails."""
    if not is_private_folder(path) or (lock := locks.lock_if_free(path / LOCK_NAME)) is None:
        return
    try:
        shutil.rmtree(path)
    finally:
        os.close(lock)


def is_private_folder(path: Path) -> bool:
    """Returns whether ``path`` is a folder of this user that no other user can write to, and no link to one."""
    found = path.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
