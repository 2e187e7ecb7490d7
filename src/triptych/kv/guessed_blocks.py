"""Guesses what lies in the KV caches of workers that report no events, by what they were sent lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_BLOCKS_A_WORKER = 65_536
"""The limit on blocks remembered of one worker; those of the prompts that were used longest ago are forgotten."""
_NOTE_COST = 4
"""The cost of a prompt beside its blocks: repeated prompts, whose blocks are known, take memory too."""
_FORGOTTEN_A_CALL = 4_096
"""The number of blocks, give or take a prompt's, that one call forgets: a millisecond. Later calls forget the rest."""


class _Note(NamedTuple):
    """One prompt that a worker was given."""

    number: int
    at_s: float
    hashes: Sequence[int]


@dataclass
class _Worker:
    """The prompts that one worker was given."""

    last: dict[int, int] = field(default_factory=dict)
    """The number of each block's last note."""
    notes: deque[_Note] = field(default_factory=deque)
    cost: int = 0
    """The cost of all ``notes``: their blocks, repeated ones too, and ``_NOTE_COST`` each."""


class GuessedBlocks:
    """Remembers blocks by worker, each for a while after its last use. For one event loop; the caller has the clock."""

    def __init__(self, keep_s: float, max_blocks_a_worker: int = MAX_BLOCKS_A_WORKER) -> None:
        self._keep_s = keep_s
        self._max = max_blocks_a_worker
        self._number = 0
        self._workers: dict[str, _Worker] = {}

    def note(self, worker: str, hashes: Sequence[int], now_s: float) -> list[int]:
        """Notes that ``worker`` was given a prompt of these blocks, and returns the blocks to forget for it.

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
        """Drops the oldest notes of ``known`` and returns the forgotten blocks, children before parents.

        A block goes with the last of its notes.
        """
        forgotten: list[int] = []
        last, notes, oldest_s = known.last, known.notes, now_s - self._keep_s
        while notes and (len(last) > self._max or known.cost > 4 * self._max or notes[0].at_s < oldest_s):
            number, _, hashes = notes.popleft()
            known.cost -= len(hashes) + _NOTE_COST
            for block in reversed(hashes):
                if last.get(block) == number:
                    del last[block]
                    forgotten.append(block)
            if len(forgotten) > _FORGOTTEN_A_CALL:
                break
        return forgotten

    def expired(self, now_s: float) -> list[tuple[str, list[int]]]:
        """Forgets the blocks whose time is over, and returns them as (worker, blocks)."""
        workers = self._workers.items()
        return [(name, blocks) for name, known in workers if (blocks := self._forgotten(known, now_s))]

    def forget(self, worker: str) -> None:
        """Forgets all blocks of ``worker``."""
        self._workers.pop(worker, None)
