"""Keeps shared memory that a decoder has filled, to fill it again: fresh pages take nearly as long as a picture."""

from __future__ import annotations

import os
from functools import partial
from typing import NamedTuple

from triptych.aio.memory import MIB, Mapping, close_elsewhere, unmap_elsewhere
from triptych.media.sandbox import shared

KEPT_BYTES = 96 * MIB
"""Maximum bytes of unused memory kept for each decoder: two pictures of 12 megapixels."""
LEAST_BYTES = 4 * MIB
"""Smaller memory is made anew each time, because reusable memory takes an open descriptor as long as it is in use."""
_MAX_TIMES = 1.25
"""Maximum ratio of a reused block to the size needed. Limits on decoded media count the bytes that are needed."""


class _Block(NamedTuple):
    fd: int
    address: int
    size_bytes: int


class Loan(NamedTuple):
    """Memory that a decoder is about to fill. It is given back, or freed, with the last reference to its mapping."""

    mapping: Mapping
    fd: int
    kept: bool
    """Whether ``fd`` stays open for the next loan. If not, the borrower closes it once the decoder has it."""


class Spares:
    """Spare memory of one decoder, and for no other: the decoder may still have access to memory that it once had."""

    def __init__(self) -> None:
        self._free: list[_Block] = []
        self._closed = False
        self.fresh_bytes = 0
        """Bytes of fresh memory that were ever lent, which the decoder may still hold open. Small blocks do not count,
        because descriptors are limited."""

    def take(self, size_bytes: int) -> Loan:
        """Returns memory of at least so many bytes, used before or fresh. Raises OSError."""
        fit = (spare for spare in self._free if size_bytes <= spare.size_bytes <= _MAX_TIMES * size_bytes)
        block = min(fit, key=lambda spare: spare.size_bytes, default=None)
        if block is None:
            return self._fresh(size_bytes)
        self._free.remove(block)
        mapping = Mapping.again(block.address, block.size_bytes, partial(self._take_back, block.fd))
        return Loan(mapping, block.fd, kept=True)

    def note(self, size_bytes: int) -> None:
        """Takes note that memory of that size was shared with the decoder."""
        self.fresh_bytes += size_bytes if size_bytes >= LEAST_BYTES else 0

    def close(self) -> None:
        """Keeps nothing from now on, whenever memory comes back."""
        self._closed = True
        self._trim()

    def _fresh(self, size_bytes: int) -> Loan:
        keep = LEAST_BYTES <= size_bytes <= KEPT_BYTES
        self.note(size_bytes)
        fd = shared.make(size_bytes)
        try:
            mapping = Mapping(size_bytes, fd=fd, give_back=partial(self._take_back, fd) if keep else None)
        except BaseException:
            os.close(fd)
            raise
        return Loan(mapping, fd, kept=keep)

    def _take_back(self, fd: int, address: int, size_bytes: int) -> None:
        """Takes a block back. May be called in any thread, at any moment."""
        self._free.append(_Block(fd, address, size_bytes))
        self._trim()

    def _trim(self) -> None:
        while self._free and (self._closed or sum(spare.size_bytes for spare in self._free) > KEPT_BYTES):
            try:
                oldest = self._free.pop(0)
            except IndexError:  # another thread was quicker
                return
            unmap_elsewhere(oldest.address, oldest.size_bytes)
            close_elsewhere(oldest.fd)
