"""What workers that report no events were sent lately: a guess at what is in their KV caches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCKS_A_WORKER = 65_536
"""Most blocks remembered of one worker; those used longest ago are forgotten."""


class Recent:
    """Blocks by worker, each for a while after its last use. For one event loop; the caller has the clock."""

    def __init__(self, keep_s: float, blocks_a_worker: int = BLOCKS_A_WORKER) -> None:
        self._keep_s = keep_s
        self._max = blocks_a_worker
        self._used: dict[str, OrderedDict[int, float]] = {}

    def note(self, worker: str, hashes: Sequence[int], now_s: float) -> list[int]:
        """``worker`` was given a prompt of these blocks. Returns those that are to be forgotten for it."""
        used = self._used.setdefault(worker, OrderedDict())
        for one in reversed(hashes):  # the first block is the one used last: a prefix outlives what hangs on it
            used[one] = now_s
            used.move_to_end(one)
        gone = []
        while used and (len(used) > self._max or next(iter(used.values())) < now_s - self._keep_s):
            gone.append(used.popitem(last=False)[0])
        return gone

    def expired(self, now_s: float) -> list[tuple[str, list[int]]]:
        """(worker, blocks) whose time is over."""
        return [(worker, gone) for worker in list(self._used) if (gone := self.note(worker, (), now_s))]

    def forget(self, worker: str) -> None:
        self._used.pop(worker, None)
