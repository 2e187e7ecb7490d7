"""Defines the port of shared state: small entries on which all processes of one namespace agree."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import msgspec

MAX_KEY_BYTES = 72
ENTRY_OVERHEAD_BYTES = 640
"""The limit on what a back end keeps beside an entry's value, the key included. Counts towards ``Bucket.max_bytes``."""
MIN_TTL_S, MAX_TTL_S = 0.01, 10 * 366 * 86400.0


class StateUnavailable(Exception):
    """The store cannot be reached, or has not answered in time. Trying again may help. The message is one line."""


class RevisionMismatch(Exception):
    """The key was written again since the caller read it: read it again, then decide again."""


class StateFull(Exception):
    """The bucket takes the entry only after others have expired or were deleted."""


class EntryTooLarge(ValueError):
    """The value is longer than the bucket takes."""


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """A named set of entries, and its bounds."""

    name: str
    """The bucket's name: letters and digits."""
    max_entry_bytes: int
    """The limit on the length of one value."""
    max_bytes: int
    """The limit on all entries together; each counts up to ENTRY_OVERHEAD_BYTES more than its value."""
    is_durable: bool = False
    """Whether the entries must outlive a restart of the server on its disk. Files are kept in any case."""

    def check(self, key: str, value: bytes = b"", ttl_s: float | None = None) -> None:
        """Raises EntryTooLarge for the value, and ValueError for a key or a time that no back end takes."""
        if not key or len(key.encode()) > MAX_KEY_BYTES:
            raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {len(key.encode())}")
        if len(value) > self.max_entry_bytes:
            raise EntryTooLarge(f"{self.name}: {len(value)} bytes are more than {self.max_entry_bytes}")
        if ttl_s is not None and not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise ValueError(f"an entry lives for {MIN_TTL_S:g} to {MAX_TTL_S:g} s, not {ttl_s}")


class Entry(msgspec.Struct, frozen=True):
    """An entry as it was read."""

    key: str
    value: bytes
    revision: int
    """A number that grows with every write of the bucket. It is no longer valid after a complete update."""
    left_s: float | None = None
    """Seconds until the entry expires, counted from when it was read. None if it never does."""


class Update(msgspec.Struct, frozen=True):
    """One message to a watcher."""

    changed: tuple[Entry, ...] = ()
    """Entries that are new or were written again."""
    removed: tuple[str, ...] = ()
    """Keys that were deleted, or whose entries have expired."""
    is_complete: bool = False
    """Whether ``changed`` has all entries, so that others that the watcher knows are gone. This is so in the first
    update, and in the first one after the store was away, because it may have lost entries meanwhile."""


class SharedState(Protocol):
    """One bucket. Calls and watches may run at the same time on one event loop, and never block it.

    Entries are for decisions that are rare and must be known everywhere. No request may wait for a call: keep the
    entries that a watch yields, and decide by them. A call never retries. It raises StateUnavailable after a few
    seconds without an answer, and ValueError for a key or a time that is out of bounds. A call that raised
    StateUnavailable, or was cancelled, may still have been carried out.
    """

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, after: int | None = None) -> int:
        """Writes an entry, and returns its revision. The entry expires ``ttl_s`` after this write, or never if that is
        None.

        ``after`` is the revision that must be the key's last; with 0 there must be no such entry, and with None any
        entry is replaced. Raises RevisionMismatch, EntryTooLarge and StateFull; nothing has changed then.
        """
        ...

    async def get(self, key: str) -> Entry | None:
        """Returns the entry, or None if there is none or it has expired."""
        ...

    async def delete(self, key: str, *, after: int | None = None) -> None:
        """Removes the entry, if there is one. The bucket has its room again within some seconds.

        With ``after``, that must still be its revision. Raises RevisionMismatch.
        """
        ...

    def watch(self) -> AsyncGenerator[Update, None]:
        """Yields all entries at once, even if there are none, and then every change within about 1 s.

        Of several changes of one key close together, only the last is yielded. While the store is away, entries still
        expire, up to 5 s late; when it is back, the next update is a complete one. A store that is away when the watch
        begins counts as an empty one. The watch ends only when it is closed.
        """
        ...

    def trouble(self) -> str | None:
        """Explains why the store cannot be used now, by the last call and the running watches. None if it can."""
        ...

    async def close(self) -> None:
        """Closes connections and threads. Watches must be closed before. May be called twice."""
        ...


OpenState = Callable[[Bucket], SharedState]
"""Opens a bucket of the deployment's plane, without I/O."""
