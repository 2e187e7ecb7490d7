"""Keeps the free extents of a range: best fit, with coalescing. It knows sizes and offsets, and no memory."""

from __future__ import annotations

from bisect import bisect_left, insort


class FreeExtents:
    """Knows which parts of ``[0, limit)`` are free. Every operation is a binary search and one or two insertions."""

    def __init__(self) -> None:
        self.free_bytes = 0
        self._by_size: list[tuple[int, int]] = []
        """Pairs (size, start) in order: the first one that is large enough is the best fit, the lowest among equals."""
        self._size_at: dict[int, int] = {}
        """The size of each free extent, by its start."""
        self._start_before: dict[int, int] = {}
        """The start of each free extent, by its end."""

    @property
    def largest_bytes(self) -> int:
        return self._by_size[-1][0] if self._by_size else 0

    def tail_bytes(self, limit: int) -> int:
        """Returns the size of the free extent that ends at ``limit``, or 0."""
        start = self._start_before.get(limit)
        return 0 if start is None else limit - start

    def take(self, size: int) -> int | None:
        """Takes ``size`` bytes and returns their start, or None if no extent is large enough."""
        place = bisect_left(self._by_size, (size, 0))
        if place == len(self._by_size):
            return None
        found, start = self._by_size[place]
        self._remove(start, found)
        if found > size:
            self._insert(start + size, found - size)
        return start

    def give(self, start: int, size: int) -> None:
        """Frees ``size`` bytes at ``start`` and joins them with their free neighbours."""
        after = self._size_at.get(start + size)
        if after is not None:
            self._remove(start + size, after)
            size += after
        before = self._start_before.get(start)
        if before is not None:
            self._remove(before, start - before)
            start, size = before, size + start - before
        self._insert(start, size)

    def _insert(self, start: int, size: int) -> None:
        insort(self._by_size, (size, start))
        self._size_at[start] = size
        self._start_before[start + size] = start
        self.free_bytes += size

    def _remove(self, start: int, size: int) -> None:
        del self._by_size[bisect_left(self._by_size, (size, start))]
        del self._size_at[start]
        del self._start_before[start + size]
        self.free_bytes -= size
