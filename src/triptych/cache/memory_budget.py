"""Bounds the memory that requests hold. A request over the bound is refused: waiting would keep what it already
holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from triptych.contracts.errors import PayloadTooLarge, TooManyRequests
from triptych.contracts.media import Data
from triptych.contracts.metric import Metric, gauge

LARGE_BYTES = 8 << 20
"""Memory is worth giving back to the system when requests that held this much together have ended."""


class Reservation(Protocol):
    """The part of the budget that one request holds.

    Both methods raise TooManyRequests if there is no room now, and PayloadTooLarge if there never is.
    """

    def add(self, size_bytes: int) -> None:
        """Adds memory of the request's own, such as the next part of its body."""

    def keep(self, data: Data) -> None:
        """Adds data that several requests may hold, such as a cached medium. It counts once for all of them."""


class MemoryBudget:
    """Counts the bytes of bodies, texts, tokens and fetched media that requests hold. For one event loop."""

    def __init__(self, limit_bytes: int, on_large_end: Callable[[], None] = lambda: None) -> None:
        """``on_large_end`` is called each time that requests which held LARGE_BYTES or more together have ended."""
        self._limit = limit_bytes
        self._ended_bytes = 0
        """Bytes of requests that ended since the last call of ``on_large_end``."""
        self._on_large_end = on_large_end
        self._holders: Counter[int] = Counter()
        """Number of requests that keep each piece of data, by the id of the data."""
        self.size_bytes = 0

    @contextmanager
    def request(self) -> Iterator[Reservation]:
        """Opens a reservation, which is given back at the end of the block."""
        held = _Request(self)
        try:
            yield held
        finally:
            self._ended_bytes += held.give_back()
            if self._ended_bytes >= LARGE_BYTES:
                self._ended_bytes = 0
                self._on_large_end()

    def take(self, size_bytes: int) -> None:
        """Takes ``size_bytes``. Raises as ``Reservation`` does."""
        if size_bytes > self._limit:
            reason = f"the request has more than the {self._limit:,} bytes that all may hold (--max-held-bytes)"
            raise PayloadTooLarge(reason, code="body_too_large")
        if self.size_bytes + size_bytes > self._limit:
            raise TooManyRequests(
                f"the bodies and media of requests have {self.size_bytes:,} bytes, and {size_bytes:,} more would "
                f"be over the limit of {self._limit:,} (--max-held-bytes); try again",
                code="memory_full",
            )
        self.size_bytes += size_bytes

    def share(self, data: Data) -> None:
        """Adds a holder of ``data``, and takes its bytes for the first one."""
        if id(data) not in self._holders:
            self.take(len(data))
        self._holders[id(data)] += 1

    def leave(self, data: Data) -> None:
        """Removes a holder of ``data``, and gives its bytes back after the last one."""
        self._holders[id(data)] -= 1
        if not self._holders[id(data)]:
            del self._holders[id(data)]
            self.size_bytes -= len(data)

    def metrics(self) -> Iterable[Metric]:
        """Yields the metrics of this budget."""
        text = "Bytes of bodies, texts, tokens and fetched media that requests hold."
        yield gauge("triptych_held_bytes", text, self.size_bytes)
        yield gauge(
            "triptych_held_limit_bytes", "The most bytes that requests may hold (--max-held-bytes).", self._limit
        )


class _Request:
    """Implements ``Reservation``."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._own_bytes = 0
        self._kept: list[Data] = []

    def add(self, size_bytes: int) -> None:
        self._budget.take(size_bytes)
        self._own_bytes += size_bytes

    def keep(self, data: Data) -> None:
        self._budget.share(data)
        self._kept.append(data)

    def give_back(self) -> int:
        """Gives everything back. Returns how many bytes it was."""
        self._budget.size_bytes -= self._own_bytes
        for data in self._kept:
            self._budget.leave(data)
        return self._own_bytes + sum(map(len, self._kept))
