"""The port of shared state: small entries that all processes of one namespace know alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import msgspec

MAX_KEY_BYTES = 72
ENTRY_OVERHEAD_BYTES = 640
"""What a back end may keep beside an entry's value, its key included; it counts among ``Bucket.max_bytes``."""
MIN_TTL_S, MAX_TTL_S = 0.01, 10 * 366 * 86400.0


class StateUnavailable(Exception):
    """The store cannot be reached, or has not answered in time. Trying again later may help. One line."""


class RevisionMismatch(Exception):
    """The key's last write is not the one that the caller has seen: read it again, then decide again."""


class StateFull(Exception):
    """The bucket has no room for the entry until others expire or are deleted."""


class EntryTooLarge(ValueError):
    """The value is longer than the bucket takes."""


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """A named set of entries, and its bounds."""

    name: str
    """Letters and digits."""
    max_entry_bytes: int
    """Longest value."""
    max_bytes: int
    """All entries together, with up to ENTRY_OVERHEAD_BYTES for each."""
    is_durable: bool = False
    """Whether a server that is restarted on its disk must have the entries still. Files are kept in any case."""

    def check(self, key: str, value: bytes = b"", ttl_s: float | None = None) -> None:
        """Raises EntryTooLarge, and ValueError for a key or a time that no back end takes."""
        if not key or len(key.encode()) > MAX_KEY_BYTES:
            raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {len(key.encode())}")
        if len(value) > self.max_entry_bytes:
            raise EntryTooLarge(f"{self.name}: {len(value)} bytes are more than {self.max_entry_bytes}")
        if ttl_s is not None and not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise ValueError(f"an entry lives for {MIN_TTL_S:g} to {MAX_TTL_S:g} s, not {ttl_s}")


class Entry(msgspec.Struct, frozen=True):
    """One entry as it was when it was read."""

    key: str
    value: bytes
    revision: int
    """Grows with every write of the bucket. Not valid any more once a watcher was given a complete update."""
    left_s: float | None = None
    """Seconds until it expires, counted from when it was read. None: never."""


class Update(msgspec.Struct, frozen=True):
    """What a watcher is told."""

    changed: tuple[Entry, ...] = ()
    """Entries that are new or were written again."""
    removed: tuple[str, ...] = ()
    """Keys that were deleted, or whose entries have expired."""
    is_complete: bool = False
    """``changed`` is all that there is; what the watcher knew besides is gone. So is the first update, and the first
    after the store was away: it may have come back with less than it had."""


class SharedState(Protocol):
    """One bucket. Calls and watches may run at the same time, on one event loop, and block it never.

    Entries are for what is decided rarely and must be known everywhere. No request waits for a call: keep what a watch
    tells, and decide by that. A call never retries. It raises StateUnavailable after a few seconds without an answer,
    and ValueError for a key or a time that is out of bounds. A call that raised StateUnavailable, or was cancelled, may
    have been carried out all the same.
    """

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, after: int | None = None) -> int:
        """Write an entry, and return its revision. It expires ``ttl_s`` after this write; None: never.

        ``after``: the write must follow this revision of the key; 0: there must be no such entry; None: whatever is
        there is replaced. Raises RevisionMismatch, EntryTooLarge and StateFull; then nothing has changed.
        """
        ...

    async def get(self, key: str) -> Entry | None:
        """Return the entry; None: there is none, or it has expired."""
        ...

    async def delete(self, key: str, *, after: int | None = None) -> None:
        """Remove the entry; nothing happens where there is none. Its room comes back within some seconds.

        ``after``: only if that is its revision still. Raises RevisionMismatch.
        """
        ...

    def watch(self) -> AsyncGenerator[Update, None]:
        """Yield all entries that there are (at once, also when there are none), then every change within about 1 s.

        Of several changes of one key close together, the last is told. While the store is away, entries go on to
        expire (up to 5 s late); when it is back, the next update is a complete one. A store that is away at the
        beginning is taken for an empty one. Ends only when closed.
        """
        ...

    def trouble(self) -> str | None:
        """Explain why the store cannot be used now, as far as the last call and a running watch know. None: it can."""
        ...

    async def close(self) -> None:
        """Let go of connections and threads, after watches were closed. May be called twice."""
        ...


OpenState = Callable[[Bucket], SharedState]
"""Opens a bucket of the deployment's plane, without I/O."""
