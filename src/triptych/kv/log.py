"""What changed in a worker's KV cache, for those who carry it away: each at their own pace, or all at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence

from triptych.contracts.kv_events import KvBatch, KvChange

MAX_BEHIND = 4096
"""Batches kept for a follower who is slow; past that it gets a snapshot instead."""

Tap = Callable[[Sequence[KvChange] | None], None]
"""Hears changes; None: nothing is as it was."""


class _Follower:
    def __init__(self) -> None:
        self.waiting: deque[Sequence[KvChange]] = deque()
        self.lost = True
        """It has to begin with a snapshot."""
        self.wake = asyncio.Event()


class KvLog:
    """Fans changes out. For one event loop; ``publish`` never waits, and memory is bounded by followers' bounds."""

    def __init__(self, snapshot: Callable[[], Sequence[KvChange]], max_behind: int = MAX_BEHIND) -> None:
        """``snapshot``: all that is held now, as changes to nothing."""
        self.snapshot = snapshot
        self._max_behind = max_behind
        self._followers: set[_Follower] = set()
        self._taps: list[Tap] = []
        self._closed = False

    def publish(self, changes: Sequence[KvChange]) -> None:
        """In the order of calls. Changes must be in the snapshot by now."""
        if not changes:
            return
        for tap in self._taps:
            tap(changes)
        for one in self._followers:
            if not one.lost:
                one.waiting.append(changes)
                if len(one.waiting) > self._max_behind:
                    self._lose(one)
            one.wake.set()

    def reset(self) -> None:
        """Nothing is as it was: everybody gets a snapshot."""
        for tap in self._taps:
            tap(None)
        for one in self._followers:
            self._lose(one)
            one.wake.set()

    def tap(self, hear: Tap) -> Callable[[], None]:
        """Call ``hear`` with all that is published, as it is; the result ends that."""
        self._taps.append(hear)
        return lambda: self._taps.remove(hear)

    def close(self) -> None:
        """End all that follow."""
        self._closed = True
        for one in self._followers:
            one.wake.set()

    async def follow(self) -> AsyncGenerator[KvBatch, None]:
        """A snapshot, and then every change, numbered from 0 without a gap; again a snapshot for who is too slow.

        Changes that wait together come together. Ends with ``close``.
        """
        me = _Follower()
        self._followers.add(me)
        try:
            sequence = 0
            while not self._closed:
                yield self._next(me, sequence)
                sequence += 1
                while not (me.waiting or me.lost or self._closed):
                    me.wake.clear()
                    await me.wake.wait()
        finally:
            self._followers.discard(me)

    def _next(self, me: _Follower, sequence: int) -> KvBatch:
        if me.lost:
            me.lost = False
            me.waiting.clear()
            return KvBatch(sequence, list(self.snapshot()), reset=True)
        changes = [change for batch in me.waiting for change in batch]
        me.waiting.clear()
        return KvBatch(sequence, changes)

    def _lose(self, one: _Follower) -> None:
        one.lost = True
        one.waiting.clear()
