"""Cut copies between two address ranges where either side's registrations end. Pure arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """``size`` bytes at ``address``."""

    address: int
    size: int


class Piece(NamedTuple):
    """``size`` bytes to copy between an address here and one in another process."""

    local: int
    remote: int
    size: int


def cut(whole: Piece, local_ends: Sequence[int], remote_ends: Sequence[int], most: int) -> list[Piece]:
    """``whole`` in pieces of at most ``most`` bytes, none of which crosses an end of a registration.

    ``..._ends`` are ordered addresses; the last of each must lie behind all of ``whole`` (see ``covers``).
    """
    found = []
    here, there, left = whole
    while left:
        size = min(left, most, _room(here, local_ends), _room(there, remote_ends))
        found.append(Piece(here, there, size))
        here, there, left = here + size, there + size, left - size
    return found


def _room(address: int, ends: Sequence[int]) -> int:
    """Bytes from ``address`` to the next end."""
    return ends[bisect_right(ends, address)] - address


def covers(slabs: Sequence[Span], span: Span) -> bool:
    """Whether ``slabs``, ordered and without gaps or empty ones, hold all of ``span``."""
    if not slabs:
        return span.size == 0
    if len(slabs) == 1:  # as nearly always
        ((address, size),) = slabs
        return size > 0 and address <= span.address and span.address + span.size <= address + size
    if any(before.address + before.size != after.address for before, after in pairwise(slabs)):
        return False
    last = slabs[-1]
    return (
        all(slab.size > 0 for slab in slabs)
        and slabs[0].address <= span.address
        and span.address + span.size <= last.address + last.size
    )


def batched(pieces: Sequence[Piece], max_bytes: int, max_pieces: int) -> list[list[Piece]]:
    """Neighbours together, up to either limit."""
    if len(pieces) == 1:
        return [list(pieces)]
    found: list[list[Piece]] = []
    size = max_bytes
    for piece in pieces:
        size += piece.size
        if not found or size > max_bytes or len(found[-1]) == max_pieces:
            found.append([])
            size = piece.size
        found[-1].append(piece)
    return found
