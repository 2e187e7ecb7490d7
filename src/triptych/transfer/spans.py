"""Cut copies between two address ranges where either side's registrations end. Pure arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """``size`` bytes at ``address``."""

    address: int
    size: int


class Piece(NamedTuple):
    """Bytes that lie within one registration on either side."""

    local: Span
    remote: Span


def pieces(
    local: Span, remote: Span, local_ends: Sequence[int], remote_ends: Sequence[int], most: int
) -> Iterator[Piece]:
    """``remote`` to ``local`` in order, in pieces of at most ``most`` bytes.

    ``..._ends`` are the ordered addresses at which registrations end. A remote range that reaches beyond the
    last one is cut short: callers check first with ``covers``.
    """
    here, there, left = local.address, remote.address, local.size
    while left:
        size = min(left, most, _room(here, local_ends), _room(there, remote_ends))
        yield Piece(Span(here, size), Span(there, size))
        here, there, left = here + size, there + size, left - size


def _room(address: int, ends: Sequence[int]) -> int:
    """Bytes from ``address`` to the next end."""
    place = bisect_right(ends, address)
    return ends[place] - address


def covers(slabs: Sequence[Span], span: Span) -> bool:
    """Whether ``slabs``, ordered and without gaps or empty ones, hold all of ``span``."""
    if not slabs:
        return span.size == 0
    for before, after in pairwise(slabs):
        if before.address + before.size != after.address:
            return False
    last = slabs[-1]
    return (
        all(slab.size > 0 for slab in slabs)
        and slabs[0].address <= span.address
        and span.address + span.size <= last.address + last.size
    )


def batches(all_pieces: Iterable[Piece], most_bytes: int, most_pieces: int) -> Iterator[list[Piece]]:
    """Neighbours together, up to either limit."""
    batch: list[Piece] = []
    size = 0
    for piece in all_pieces:
        if batch and (size + piece.local.size > most_bytes or len(batch) == most_pieces):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.local.size
    if batch:
        yield batch
