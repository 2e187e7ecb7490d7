"""Cuts copies between two address ranges at the ends of either side's registrations. Pure arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class AddressRange(NamedTuple):
    """``size`` bytes at ``address``."""

    address: int
    size: int


class Copy(NamedTuple):
    """A copy of ``size`` bytes between an address here and one in another process."""

    local: int
    remote: int
    size: int


def cut(whole: Copy, local_ends: Sequence[int], remote_ends: Sequence[int], max_bytes: int) -> list[Copy]:
    """Cuts ``whole`` into copies of at most ``max_bytes``, none of which crosses the end of a registration.

    Each list of ends is in order; its last address must not lie before the end of ``whole`` (see ``covers``).
    """
    found = []
    here, there, left = whole
    while left:
        size = min(left, max_bytes, _bytes_to_end(here, local_ends), _bytes_to_end(there, remote_ends))
        found.append(Copy(here, there, size))
        here, there, left = here + size, there + size, left - size
    return found


def _bytes_to_end(address: int, ends: Sequence[int]) -> int:
    """Returns the number of bytes from ``address`` to the next end."""
    return ends[bisect_right(ends, address)] - address


def covers(slabs: Sequence[AddressRange], wanted: AddressRange) -> bool:
    """Returns whether ``slabs`` hold all of ``wanted``. False if slabs are out of order, empty, or have gaps."""
    if not slabs:
        return wanted.size == 0
    if len(slabs) == 1:  # the usual case
        ((address, size),) = slabs
        return size > 0 and address <= wanted.address and wanted.address + wanted.size <= address + size
    if any(before.address + before.size != after.address for before, after in pairwise(slabs)):
        return False
    last = slabs[-1]
    return (
        all(slab.size > 0 for slab in slabs)
        and slabs[0].address <= wanted.address
        and wanted.address + wanted.size <= last.address + last.size
    )


def batched(copies: Sequence[Copy], max_bytes: int, max_copies: int) -> list[list[Copy]]:
    """Puts consecutive copies together, up to either limit."""
    if len(copies) == 1:
        return [list(copies)]
    found: list[list[Copy]] = []
    size = max_bytes
    for copy in copies:
        size += copy.size
        if not found or size > max_bytes or len(found[-1]) == max_copies:
            found.append([])
            size = copy.size
        found[-1].append(copy)
    return found
