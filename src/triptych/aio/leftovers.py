"""Files and folders that must not outlive this process.

Their owners remove them when they close. A process that is stopped while it starts, or told twice to stop, ends without
closing anything: it calls ``remove_all`` instead. Any thread may call these functions.
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
    """Have ``path`` removed, by ``remove`` where it is given, when the process ends early, should it exist by then."""
    _paths[path] = remove or _remove


def discard(path: Path) -> None:
    """Forget ``path``, which its owner has removed. Unknown paths are ignored."""
    _paths.pop(path, None)


def remove_all() -> None:
    """Remove everything that was added and not discarded. Never raises."""
    for path, remove in reversed(list(_paths.items())):
        with suppress(OSError):
            remove(path)
        discard(path)


def _remove(path: Path) -> None:
    path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path, ignore_errors=True)


LOCK_NAME = ".triptych-lock"
_PREFIXES = ("triptych-", "nats-")
"""What the names of all private folders begin with."""


class PrivateFolder:
    """A new temporary folder that only this user can read. ``close`` removes it with all that is in it.

    A locked file in it says that its owner lives, or one of the processes that use it (``share``). When all of them are
    killed, ``remove_abandoned`` removes the folder.
    """

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        """``prefix`` begins with one of ``_PREFIXES``. ``parent``: where it is made, else among temporary files."""
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._lock: int | None = None
        self._closed = False
        add(self.path, lambda _: self.close())
        with suppress(OSError):  # a file system without locks: then nobody else removes it
            self._lock = locks.new_shared(self.path / LOCK_NAME)

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keep(self) -> None:
        """Let the next command of this user remove the folder, in place of ``close``."""
        self._closed = True
        discard(self.path)
        if self._lock is not None:
            os.close(self._lock)

    def close(self) -> None:
        """Remove the folder, unless another process uses it still. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._lock is None or locks.is_only_holder(self._lock):
            shutil.rmtree(self.path, ignore_errors=True)
        discard(self.path)
        if self._lock is not None:
            os.close(self._lock)


def share(folder: Path) -> None:
    """Keep ``folder`` from being removed until this process ends, if it is a private folder of another process."""
    with suppress(OSError):
        locks.share(folder / LOCK_NAME)


def remove_abandoned(parent: Path | None = None) -> None:
    """Remove this user's private folders in ``parent``, else among temporary files, whose owners were killed.

    Never raises. Folders without a lock file stay: nobody knows whether they are in use.
    """
    parent = parent or Path(tempfile.gettempdir())
    with suppress(OSError), os.scandir(parent) as entries:
        found = [parent / entry.name for entry in entries if entry.name.startswith(_PREFIXES)]
        for path in found:
            with suppress(OSError):
                _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    """Raises OSError where it cannot be done, or where it is no private folder."""
    if not is_private_folder(path) or (lock := locks.lock_if_free(path / LOCK_NAME)) is None:
        return
    try:
        shutil.rmtree(path)
    finally:
        os.close(lock)


def is_private_folder(path: Path) -> bool:
    """Whether ``path`` is a folder, no link to one, that belongs to this user and that no other can write to."""
    found = path.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
