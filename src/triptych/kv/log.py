"""Hands the changes of a worker's KV cache to followers, each at its own speed, and to listeners at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence

from triptych.contracts.kv_events import KvBatch, KvChange

MAX_BEHIND = 4096
"""The limit on batches kept for a slow follower; over it the follower gets a snapshot instead."""

Listener = Callable[[Sequence[KvChange] | None], None]
"""Takes the changes of follower ``publish``, or None after a ``reset``."""


class _Follower:
    def __init__(self) -> None:
        self.waiting: deque[Sequence[KvChange]] = deque()
        self.needs_snapshot = True
        """Whether the next batch must be a snapshot: at the start, and after a reset or changes that were dropped."""
        self.wake = asyncio.Event()


class KvLog:
    """Fans changes out to followers. For one event loop. ``publish`` never waits, and each follower's queue is
    bounded."""

    def __init__(self, snapshot: Callable[[], Sequence[KvChange]], max_behind: int = MAX_BEHIND) -> None:
        """``snapshot`` returns all blocks that are held now, as changes to an empty cache."""
        self.snapshot = snapshot
        self._max_behind = max_behind
        self._followers: set[_Follower] = set()
        self._listeners: list[Listener] = []
        self._closed = False

    def publish(self, changes: Sequence[KvChange]) -> None:
        """Hands on changes, in the order of calls. They must be in the snapshot by now."""
        if not changes:
            return
        for listener in self._listeners:
            listener(changes)
        for follower in self._followers:
            if not follower.needs_snapshot:
                follower.waiting.append(changes)
                if len(follower.waiting) > self._max_behind:
                    self._drop_changes(follower)
            follower.wake.set()

    def reset(self) -> None:
        """Makes every follower begin again with a snapshot."""
        for listener in self._listeners:
            listener(None)
        for follower in self._followers:
            self._drop_changes(follower)
            follower.wake.set()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls ``listener`` with all that is published, at once. Returns a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def close(self) -> None:
        """Ends every ``follow``."""
        self._closed = True
        for follower in self._followers:
            follower.wake.set()

    async def follow(self) -> AsyncGenerator[KvBatch, None]:
        """Yields a snapshot and then every change, numbered from 0 without a gap.

        A follower that is too slow gets a snapshot again. Changes that wait together come together. Ends with
        ``close``.
        """
        follower = _Follower()
        self._followers.add(follower)
        try:
            sequence = 0
            while not self._closed:
                yield self._next(follower, sequence)
                sequence += 1
                while not (follower.waiting or follower.needs_snapshot or self._closed):
                    follower.wake.clear()
                    await follower.wake.wait()
        finally:
            self._followers.discard(follower)

    def _next(self, follower: _Follower, sequence: int) -> KvBatch:
        if follower.needs_snapshot:
            follower.needs_snapshot = False
            follower.waiting.clear()
            return KvBatch(sequence, list(self.snapshot()), reset=True)
        changes = [change for batch in follower.waiting for change in batch]
        follower.waiting.clear()
        return KvBatch(sequence, changes)

    def _drop_changes(self, follower: _Follower) -> None:
        follower.needs_snapshot = True
        follower.waiting.clear()
