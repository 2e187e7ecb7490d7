"""What workers that report no events were sent lately: a guess at what is in their KV caches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCKS_A_WORKER = 65_536
"""Most blocks remembered of one worker; those of the prompts that were used longest ago are forgotten."""
_NOTE_COST = 4
"""What a prompt counts beside its blocks: repeated prompts, whose blocks are known, take memory too."""
_FORGOTTEN_AT_ONCE = 4_096
"""Blocks, give or take a prompt's: a millisecond. What is left is forgotten in later calls."""


class _Note(NamedTuple):
    """One prompt that a worker was given."""

    number: int
    at_s: float
    hashes: Sequence[int]


@dataclass
class _Worker:
    """What one worker was given."""

    last: dict[int, int] = field(default_factory=dict)
    """The number of the last note of each block."""
    notes: deque[_Note] = field(default_factory=deque)
    cost: int = 0
    """Of ``notes``: their blocks, repeated ones too, and ``_NOTE_COST`` each."""


class Recent:
    """Blocks by worker, each for a while after its last use. For one event loop; the caller has the clock."""

    def __init__(self, keep_s: float, blocks_a_worker: int = BLOCKS_A_WORKER) -> None:
        self._keep_s = keep_s
        self._max = blocks_a_worker
        self._number = 0
        self._workers: dict[str, _Worker] = {}

    def note(self, worker: str, hashes: Sequence[int], now_s: float) -> list[int]:
        """Remember that ``worker`` was given a prompt of these blocks. Returns those to be forgotten for it.

        Keeps ``hashes``, which must not change any more.
        """
        known = self._workers.setdefault(worker, _Worker())
        if hashes:
            self._number += 1
            known.last.update(dict.fromkeys(hashes, self._number))
            known.notes.append(_Note(self._number, now_s, hashes))
            known.cost += len(hashes) + _NOTE_COST
        return self._forgotten(known, now_s)

    def _forgotten(self, known: _Worker, now_s: float) -> list[int]:
        """Drop the oldest notes of ``known``; a block goes with the last of its notes, those that hang on it first."""
        gone: list[int] = []
        last, notes, oldest_s = known.last, known.notes, now_s - self._keep_s
        while notes and (len(last) > self._max or known.cost > 4 * self._max or notes[0].at_s < oldest_s):
            number, _, hashes = notes.popleft()
            known.cost -= len(hashes) + _NOTE_COST
            for one in reversed(hashes):
                if last.get(one) == number:
                    del last[one]
                    gone.append(one)
            if len(gone) > _FORGOTTEN_AT_ONCE:
                break
        return gone

    def expired(self, now_s: float) -> list[tuple[str, list[int]]]:
        """(worker, blocks) whose time is over."""
        workers = self._workers.items()
        return [(name, gone) for name, known in workers if (gone := self._forgotten(known, now_s))]

    def forget(self, worker: str) -> None:
        self._workers.pop(worker, None)
