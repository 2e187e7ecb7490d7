"""A bucket as a folder: a file an entry, replaced in one step, and one lock for all writers. Blocking calls.

A lock is given back by the system however its holder ends. Readers need none: a file has all of an entry or is not
there. The lock's file holds the last revision, so that a key that was deleted never sees an old one again.
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
"""More than any holder needs: one that keeps it for longer is stopped, or hangs."""
_PAUSE_S = 0.002


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """What a file holds."""

    revision: int
    value: bytes
    boot: str = ""
    """The machine's start by whose clock ``due_s`` counts."""
    due_s: float | None = None
    """When it expires, by a clock that is never set. None: never."""
    due_unix_s: float | None = None
    """The same for after a restart of the machine."""

    def left_s(self) -> float | None:
        """Return the seconds until it expires, less than 0 once it has. None: never."""
        if self.due_s is None or self.due_unix_s is None:
            return None
        return self.due_s - time.monotonic() if self.boot == _boot() else self.due_unix_s - time.time()

    def entry(self, key: str) -> Entry:
        return Entry(key, self.value, self.revision, self.left_s())


_DECODER = msgspec.msgpack.Decoder(Stored)


class Malformed(Exception):
    """A file that no process of this version wrote."""


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
        """Return what ``file`` holds; None: there is no such file. Raises Malformed."""
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
        """Return what ``file`` holds; None as well for what has expired and what is malformed."""
        with suppress(Malformed):
            found = self.read(file)
            return None if found is None or _has_expired(found) else found
        return None

    def _remove_expired(self, file: Path) -> None:
        with suppress(Malformed):
            if (found := self.read(file)) is not None and _has_expired(found):
                file.unlink(missing_ok=True)

    def put(self, key: str, value: bytes, ttl_s: float | None, after: int | None) -> int:
        """``SharedState.put``"""
        file = self.file_of(key)
        with self._locked() as fd:
            self._compare(file, after)
            revision = _next_revision(fd)
            content = msgspec.msgpack.encode(_stored(revision, value, ttl_s))
            self._make_room(file, len(content))
            write_private(file, content)
            return revision

    def delete(self, key: str, after: int | None) -> None:
        """``SharedState.delete``"""
        file = self.file_of(key)
        with self._locked():
            self._compare(file, after)
            file.unlink(missing_ok=True)

    def sweep(self, keys: list[str]) -> None:
        """Remove those of ``keys`` that have expired."""
        with self._locked():
            for key in keys:
                self._remove_expired(self.file_of(key))

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the lock of all writers within the block, which gets its descriptor."""
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
        """Raises StateFull where there is none, though all that has expired is removed."""
        room = self._bucket.max_bytes - charge(size, file.name)
        if self._used(file.name) <= room:
            return
        for other in self.path.glob(f"*{SUFFIX}"):
            self._remove_expired(other)
        if self._used(file.name) > room:
            raise StateFull(f"{self._bucket.name}: no room for another entry in {self._bucket.max_bytes} bytes")

    def _used(self, but: str) -> int:
        """Return the bytes of all entries but one, and remove what killed writers left: nobody else writes now."""
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
    """Return what a file of ``size`` bytes counts among the bucket's: a small one takes a block of the disk, too."""
    return max(ENTRY_OVERHEAD_BYTES, size + len(name))


def _has_expired(found: Stored) -> bool:
    return (left_s := found.left_s()) is not None and left_s <= 0


def _stored(revision: int, value: bytes, ttl_s: float | None) -> Stored:
    if ttl_s is None:
        return Stored(revision, value)
    return Stored(revision, value, _boot(), time.monotonic() + ttl_s, time.time() + ttl_s)


def _next_revision(fd: int) -> int:
    """Count on from the last revision, which the locked file ``fd`` holds; where it does not, from the clock."""
    last = os.pread(fd, 8, 0)
    revision = max(int.from_bytes(last, "big") + 1 if len(last) == 8 and last[0] < 0x80 else 0, time.time_ns())
    os.pwrite(fd, revision.to_bytes(8, "big"), 0)
    return revision


@cache
def _boot() -> str:
    """Return a name for this start of the machine; empty where the system tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
