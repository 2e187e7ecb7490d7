"""Keeps shared state within one process: the reference for back ends, and for tests of code that uses the port."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import NamedTuple

from triptych.planes.state.base import (
    ENTRY_OVERHEAD_BYTES,
    Bucket,
    Entry,
    RevisionMismatch,
    StateFull,
    StateUnavailable,
    Update,
)
from triptych.planes.state.view import View


class _Stored(NamedTuple):
    value: bytes
    revision: int
    due_s: float | None


class MemoryStore:
    """The entries of one bucket, for all its ``MemoryState`` objects. While ``is_away``, it cannot be reached."""

    def __init__(self) -> None:
        self.entries: dict[str, _Stored] = {}
        self.revision = 0
        self._is_away = False
        self.changed = asyncio.Event()
        """Every change sets it and puts a new event in its place."""

    @property
    def is_away(self) -> bool:
        return self._is_away

    @is_away.setter
    def is_away(self, is_away: bool) -> None:
        self._is_away = is_away
        self.tell()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def live(self) -> dict[str, _Stored]:
        """Returns the entries that have not expired, and drops the others."""
        now = time.monotonic()
        self.entries = {
            key: stored for key, stored in self.entries.items() if stored.due_s is None or stored.due_s > now
        }
        return self.entries


class MemoryState:
    """Implements ``SharedState``."""

    def __init__(self, store: MemoryStore, bucket: Bucket) -> None:
        self._store, self._bucket = store, bucket

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, after: int | None = None) -> int:
        self._bucket.check(key, value, ttl_s)
        entries = self._reached()
        self._compare(key, after)
        kept = sum(len(stored.value) + ENTRY_OVERHEAD_BYTES for other, stored in entries.items() if other != key)
        if kept + len(value) + ENTRY_OVERHEAD_BYTES > self._bucket.max_bytes:
            raise StateFull(self._bucket.name)
        self._store.revision += 1
        due_s = None if ttl_s is None else time.monotonic() + ttl_s
        entries[key] = _Stored(value, self._store.revision, due_s)
        self._store.tell()
        return self._store.revision

    async def get(self, key: str) -> Entry | None:
        self._bucket.check(key)
        found = self._reached().get(key)
        return None if found is None else _entry(key, found)

    async def delete(self, key: str, *, after: int | None = None) -> None:
        self._bucket.check(key)
        entries = self._reached()
        self._compare(key, after)
        if entries.pop(key, None) is not None:
            self._store.tell()

    def _reached(self) -> dict[str, _Stored]:
        if self._store.is_away:
            raise StateUnavailable("the store is away")
        return self._store.live()

    def _compare(self, key: str, after: int | None) -> None:
        found = self._store.entries.get(key)
        if after is not None and after != (found.revision if found else 0):
            raise RevisionMismatch(key)

    async def watch(self) -> AsyncGenerator[Update, None]:
        view, is_complete = View(), True
        while True:
            changed, now = self._store.changed, time.monotonic()
            if self._store.is_away:
                update, is_complete = view.expire(now), True
            elif is_complete:
                update, is_complete = view.replace(self._entries(), now), False
            else:
                entries = self._entries()
                gone = view.keys() - {entry.key for entry in entries}
                update = view.update(entries, gone, now)
            if update is not None:
                yield update
            else:
                await _first_of(changed, view.wait_s(time.monotonic(), 3600.0))

    def _entries(self) -> list[Entry]:
        return [_entry(key, stored) for key, stored in self._store.live().items()]

    def trouble(self) -> str | None:
        return "the store is away" if self._store.is_away else None

    async def close(self) -> None:
        """Does nothing, because there is nothing to close."""


async def _first_of(changed: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await changed.wait()
    except TimeoutError:
        pass


def _entry(key: str, stored: _Stored) -> Entry:
    return Entry(key, stored.value, stored.revision, None if stored.due_s is None else stored.due_s - time.monotonic())
