"""Keeps a bucket in a folder: one file for each entry, and one lock for all writers. All calls block.

The system releases the lock however its holder ends. Readers need no lock, because a file is replaced in one step: it
has the whole entry or does not exist. The lock's file holds the last revision, so that no revision is used again after
a key was deleted.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import msgspec

from triptych.aio import locks
from triptych.contracts.errors import ConfigError
from triptych.planes.keys import key_of, name_of
from triptych.planes.run_dir import make_folder, read_private, write_private
from triptych.planes.state.base import (
    ENTRY_OVERHEAD_BYTES,
    Bucket,
    Entry,
    RevisionMismatch,
    StateFull,
    StateUnavailable,
)

SUFFIX = ".entry"
LOCK_FILE = "lock"
LOCK_WAIT_S = 2.0
"""The longest wait for the lock. It is more than any holder needs, unless that process is stopped or hangs."""
_PAUSE_S = 0.002


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """The content of a file."""

    revision: int
    value: bytes
    boot: str = ""
    """The name of the start of the machine since which ``due_s`` counts."""
    due_s: float | None = None
    """When the entry expires, by the monotonic clock. None if it never does."""
    due_unix_s: float | None = None
    """When the entry expires, in Unix time. It counts after a restart of the machine."""

    def left_s(self) -> float | None:
        """Returns the seconds until the entry expires, negative once it has, or None if it never does."""
        if self.due_s is None or self.due_unix_s is None:
            return None
        return self.due_s - time.monotonic() if self.boot == _boot() else self.due_unix_s - time.time()

    def entry(self, key: str) -> Entry:
        return Entry(key, self.value, self.revision, self.left_s())


_DECODER = msgspec.msgpack.Decoder(Stored)


class Malformed(Exception):
    """The file was not written by a process of this version."""


class StateFolder:
    """The files of one bucket. Every call may raise OSError and StateUnavailable."""

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        self.path, self._bucket = folder, bucket
        self.max_file_bytes = bucket.max_entry_bytes + ENTRY_OVERHEAD_BYTES
        self.max_bytes = bucket.max_bytes

    def make(self) -> None:
        make_folder(self.path)

    def file_of(self, key: str) -> Path:
        return self.path / f"{key_of(key)}{SUFFIX}"

    def read(self, file: Path) -> Stored | None:
        """Returns the content of ``file``, or None if there is no such file. Raises Malformed."""
        try:
            content = read_private(file, self.max_file_bytes + 1)
            found = _DECODER.decode(content)
        except FileNotFoundError:
            return None
        except (ConfigError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ELOOP:  # a symbolic link
                raise
            raise Malformed("it is no file that only this user can read") from error
        except msgspec.MsgspecError as error:
            raise Malformed(f"it is no entry of this version: {error}") from error
        if len(content) > self.max_file_bytes or len(found.value) > self._bucket.max_entry_bytes:
            raise Malformed(f"it is longer than {self._bucket.max_entry_bytes} bytes")
        if not math.isfinite(found.left_s() or 0.0):  # it would compare with no time
            raise Malformed("the time at which it expires is no number")
        return found

    def live(self, file: Path) -> Stored | None:
        """Returns the content of ``file``, or None if it is missing, expired or malformed."""
        with suppress(Malformed):
            found = self.read(file)
            return None if found is None or _has_expired(found) else found
        return None

    def _remove_expired(self, file: Path) -> None:
        with suppress(Malformed):
            if (found := self.read(file)) is not None and _has_expired(found):
                file.unlink(missing_ok=True)

    def put(self, key: str, value: bytes, ttl_s: float | None, after: int | None) -> int:
        """Implements ``SharedState.put``."""
        file = self.file_of(key)
        with self._locked() as fd:
            self._compare(file, after)
            revision = _next_revision(fd)
            content = msgspec.msgpack.encode(_stored(revision, value, ttl_s))
            self._make_room(file, len(content))
            write_private(file, content)
            return revision

    def delete(self, key: str, after: int | None) -> None:
        """Implements ``SharedState.delete``."""
        file = self.file_of(key)
        with self._locked():
            self._compare(file, after)
            file.unlink(missing_ok=True)

    def sweep(self, keys: list[str]) -> None:
        """Removes the entries of ``keys`` that have expired."""
        with self._locked():
            for key in keys:
                self._remove_expired(self.file_of(key))

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Holds the lock of all writers within the block, which gets its descriptor."""
        self.make()
        fd = locks.claim(self.path / LOCK_FILE, LOCK_WAIT_S, _PAUSE_S)
        if fd is None:
            raise StateUnavailable(f"another process has held {self.path / LOCK_FILE} for {LOCK_WAIT_S:g} s")
        try:
            yield fd
        finally:
            os.close(fd)

    def _compare(self, file: Path, after: int | None) -> None:
        if after is None:
            return
        found = self.live(file)
        if after != (found.revision if found else 0):
            raise RevisionMismatch(name_of(file.stem) or file.stem)

    def _make_room(self, file: Path, size: int) -> None:
        """Removes expired entries if there is no room for ``size`` bytes. Raises StateFull if that is not enough."""
        room = self._bucket.max_bytes - charge(size, file.name)
        if self._used(file.name) <= room:
            return
        for other in self.path.glob(f"*{SUFFIX}"):
            self._remove_expired(other)
        if self._used(file.name) > room:
            raise StateFull(f"{self._bucket.name}: no room for another entry in {self._bucket.max_bytes} bytes")

    def _used(self, but: str) -> int:
        """Returns the bytes of all entries but one, and removes the files that killed writers left.

        The caller has the lock, so that no writer is at work.
        """
        used = 0
        with os.scandir(self.path) as files:
            for file in files:
                if file.name.endswith(SUFFIX):
                    size = file.stat(follow_symlinks=False).st_size
                    used += 0 if file.name == but or size > self.max_file_bytes else charge(size, file.name)
                elif f"{SUFFIX}." in file.name:
                    with suppress(OSError):
                        os.unlink(file.path)
        return used


def charge(size: int, name: str) -> int:
    """Returns how many bytes a file of ``size`` bytes counts. The minimum is there because every file takes a block."""
    return max(ENTRY_OVERHEAD_BYTES, size + len(name))


def _has_expired(found: Stored) -> bool:
    return (left_s := found.left_s()) is not None and left_s <= 0


def _stored(revision: int, value: bytes, ttl_s: float | None) -> Stored:
    if ttl_s is None:
        return Stored(revision, value)
    return Stored(revision, value, _boot(), time.monotonic() + ttl_s, time.time() + ttl_s)


def _next_revision(fd: int) -> int:
    """Returns the revision after the last one, which the locked file ``fd`` holds, and stores it there.

    If the file holds none, revisions go on from the clock.
    """
    last = os.pread(fd, 8, 0)
    revision = max(int.from_bytes(last, "big") + 1 if len(last) == 8 and last[0] < 0x80 else 0, time.time_ns())
    os.pwrite(fd, revision.to_bytes(8, "big"), 0)
    return revision


@cache
def _boot() -> str:
    """Returns the name of this start of the machine, or an empty text if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
