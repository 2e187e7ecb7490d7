"""Finds what has changed in a bucket's folder since the last look. All calls block."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from triptych.planes.ignored import Ignored
from triptych.planes.keys import name_of
from triptych.planes.state.base import Entry
from triptych.planes.state.files import SUFFIX, Malformed, StateFolder, charge

log = logging.getLogger("triptych.state")

COARSE_S = 0.1
"""More than the resolution of file times. A change so soon after a look may leave the folder's time as it was."""


_Mark = tuple[int, int]
"""Inode and time of a file. They tell it from the file that replaces it; no file is changed in place."""


class Found(NamedTuple):
    """The result of one look."""

    changed: list[Entry]
    removed: list[str]
    expired: list[str]
    """Expired keys whose files still exist."""
    is_complete: bool
    """Whether the folder was replaced since the last look, so that ``changed`` has all its entries."""


class Scanner:
    """Looks at a folder repeatedly, and reads the files that are new. Serves one watch."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder
        self._ignored = Ignored(log, str(folder.path))
        self._marks: dict[str, tuple[_Mark, bool]] = {}
        """For the name of each file, its mark and whether it is an entry."""
        self._known: set[str] = set()
        self._looked: tuple[int, int, int] | None = None
        """Device, inode and time of the folder at the last look, or None if a later change may not show in them."""
        self._fd: int | None = None
        """A descriptor of the folder at the last look. While it is open, no other folder gets the same inode."""
        self._is_closed = False

    def may_have_changed(self) -> bool:
        """Returns whether a look may find anything. Takes microseconds."""
        try:
            found = self._folder.path.stat()
        except OSError:
            return True
        return self._looked != (found.st_dev, found.st_ino, found.st_mtime_ns)

    def look(self) -> Found:
        """Reads the folder. After an OSError, what was found before stays valid."""
        self._folder.make()
        before = self._folder.path.stat()
        is_complete = self._fd is None or not os.path.samestat(before, os.fstat(self._fd))
        if is_complete:
            self._marks, self._known = {}, set()
        self._looked = None
        changed, seen = self._read_new()
        gone = self._known - seen
        self._known = seen
        expired = [entry.key for entry in changed if entry.left_s is not None and entry.left_s <= 0]
        if is_complete:
            self._hold()
        if time.time() - before.st_mtime_ns / 1e9 > COARSE_S:
            self._looked = (before.st_dev, before.st_ino, before.st_mtime_ns)
        return Found(changed, sorted(gone), expired, is_complete)

    def _hold(self) -> None:
        self._let_go()
        self._fd = os.open(self._folder.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if self._is_closed:  # ``close`` was called meanwhile, in another thread
            self._let_go()

    def close(self) -> None:
        """Closes the descriptor of the folder. May be called twice."""
        self._is_closed = True
        self._let_go()

    def _let_go(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _read_new(self) -> tuple[list[Entry], set[str]]:
        """Returns the entries of new files, and the keys of all entries."""
        changed: list[Entry] = []
        marks: dict[str, tuple[_Mark, bool]] = {}
        seen: set[str] = set()
        for key, name, mark in self._files():
            before, is_entry = self._marks.get(name, (None, False))
            if before != mark:
                entry = self._read(key, name, mark)
                is_entry = entry is not None
                changed += [entry] if entry else []
            marks[name] = mark, is_entry
            if is_entry:
                seen.add(key)
        self._marks = marks
        return changed, seen

    def _files(self) -> Iterator[tuple[str, str, _Mark]]:
        """Yields key, name and mark of each file that may be an entry, until the bucket's limit is reached."""
        left = self._folder.max_bytes
        with os.scandir(self._folder.path) as files:
            for file in files:
                if not file.name.endswith(SUFFIX):
                    continue
                key = name_of(file.name.removesuffix(SUFFIX))
                try:
                    found = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                mark = (found.st_ino, found.st_mtime_ns)
                if key is None:
                    self._ignored.add((file.name, *mark), file.name, "no key has this name")
                    continue
                left -= charge(min(found.st_size, self._folder.max_file_bytes), file.name)
                if left < 0:
                    self._ignored.add("full", "entries", "there are more than the bucket has room for")
                    return
                yield key, file.name, mark

    def _read(self, key: str, name: str, mark: _Mark) -> Entry | None:
        """Returns the entry, or None if it is gone or malformed. Raises OSError."""
        try:
            found = self._folder.read(Path(self._folder.path, name))
        except Malformed as error:
            self._ignored.add((name, *mark), name, error)
            return None
        return None if found is None else found.entry(key)
