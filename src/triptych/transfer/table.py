"""Keeps the lease table: four words for each lease, in memory that receivers can read and write.

When a lease opens, the owner writes where the bytes lie and then the lease's random token (``live``). When it ends, the
owner writes zero over the token, always before the memory is used again. A receiver copies the bytes and then reads the
entry. The copy is what was exported only if the entry has the token, the place and the size, because leases never come
back. Then the receiver writes the token into ``done``, where the owner finds it. ``done`` is the only word that
receivers write, and the owner believes it only for the open lease, so a late receiver does no harm to the next lease.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

SLOTS = 16384
"""The limit on open leases of one process."""
_WORDS = 4
ENTRY_BYTES = 8 * _WORDS
DONE_OFFSET = 8
"""The offset of the word ``done`` in an entry."""
TABLE_BYTES = SLOTS * ENTRY_BYTES


class Entry(NamedTuple):
    """A copy of one lease's words."""

    live: int
    done: int
    start: int
    size: int

    @classmethod
    def read_all(cls, words: memoryview) -> list[Entry]:
        """Returns all entries in ``words``."""
        return [cls(*found) for found in struct.iter_unpack("=4Q", words)]

    def allows(self, token: int, start: int, size: int) -> bool:
        """Returns whether the lease ``token`` is open, not fetched yet, and of the ``size`` bytes at ``start``."""
        return self.live == token != self.done and (self.start, self.size) == (start, size)


class LeaseTable:
    """Reads and writes the table in ``view``: ``TABLE_BYTES`` or more, at first zeroes, aligned to 8 bytes.

    The memory may be this process's own or another's.
    """

    def __init__(self, view: memoryview) -> None:
        self._words = view[:TABLE_BYTES].cast("Q")

    # The owner's methods.

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

    # The receiver's methods. Its token and slot come from a handle and may be wrong.

    def entry(self, slot: int) -> Entry:
        return Entry(*self._words[slot * _WORDS : (slot + 1) * _WORDS])

    def mark_done(self, slot: int, token: int) -> None:
        self._words[slot * _WORDS + 1] = token


def new_token() -> int:
    """Returns a random token: never zero, and in practice never the same twice."""
    return int.from_bytes(os.urandom(8), "little") or 1
