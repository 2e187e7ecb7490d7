"""The lease table: four words for each lease, in memory that receivers can read and write.

The owner writes where the bytes lie and then the lease's random token (``live``) when it opens, and zero over the
token when it ends, always before the memory is used again. A receiver that has copied the bytes reads the
entry: only when it says live, and the place and size that were copied, are they what was exported, for leases
never come back. It then writes the token into ``done``, where the owner finds it. ``done`` is the one word that
receivers write, and the owner believes it only of the open lease, so a late one can do no harm to the next.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

SLOTS = 16384
"""Most leases of one process at a time."""
_WORDS = 4
ENTRY_BYTES = 8 * _WORDS
DONE_OFFSET = 8
"""Of the word ``done`` in an entry."""
TABLE_BYTES = SLOTS * ENTRY_BYTES


class Entry(NamedTuple):
    """One lease's words, as they stood at one time."""

    live: int
    done: int
    start: int
    size: int

    @classmethod
    def read_all(cls, words: memoryview) -> list[Entry]:
        """Of as many entries as ``words`` holds."""
        return [cls(*found) for found in struct.iter_unpack("=4Q", words)]

    def allows(self, token: int, start: int, size: int) -> bool:
        """Whether the lease ``token`` is open, not fetched yet, and of the ``size`` bytes at ``start``."""
        return self.live == token != self.done and (self.start, self.size) == (start, size)


class LeaseTable:
    """Over ``view``, at least ``TABLE_BYTES`` of zeroes at a multiple of 8 in this process or another."""

    def __init__(self, view: memoryview) -> None:
        self._words = view[:TABLE_BYTES].cast("Q")

    # The owner's side.

    def open(self, slot: int, token: int, start: int, size: int) -> None:
        first = slot * _WORDS
        self._words[first + 1] = 0
        self._words[first + 2] = start
        self._words[first + 3] = size
        self._words[first] = token

    def end(self, slot: int) -> None:
        self._words[slot * _WORDS] = 0

    def is_done(self, slot: int, token: int) -> bool:
        return self._words[slot * _WORDS + 1] == token

    # The receiver's side. It knows token and slot from a handle, which may be lies.

    def entry(self, slot: int) -> Entry:
        return Entry(*self._words[slot * _WORDS : (slot + 1) * _WORDS])

    def mark_done(self, slot: int, token: int) -> None:
        self._words[slot * _WORDS + 1] = token


def new_token() -> int:
    """Never zero, and never given twice in practice."""
    return int.from_bytes(os.urandom(8), "little") or 1
