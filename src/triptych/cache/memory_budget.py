"""A bound on memory that requests fill and keep: whoever brings more is refused, as waiting would keep what it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from triptych.contracts.errors import PayloadTooLarge, TooManyRequests
from triptych.contracts.media import Data
from triptych.contracts.metric import Metric, gauge

LARGE_BYTES = 8 << 20
"""Of requests that have ended, one or many: worth giving memory back to the system."""


class Reservation(Protocol):
    """A request that takes memory. Raises TooManyRequests where there is no room now, PayloadTooLarge where none ever
    is."""

    def add(self, size_bytes: int) -> None:
        """Of its own, such as a body's next part."""

    def keep(self, data: Data) -> None:
        """What several may keep, such as a medium from the cache, counts once for all of them."""


class MemoryBudget:
    """Bytes of bodies, texts, tokens and fetched media that a frontend's requests hold. For one event loop."""

    def __init__(self, limit_bytes: int, on_large_end: Callable[[], None] = lambda: None) -> None:
        """Call ``on_large_end`` each time that requests which held LARGE_BYTES or more together have ended."""
        self._limit = limit_bytes
        self._ended_bytes = 0
        """Of requests that ended since the last such call."""
        self._on_large_end = on_large_end
        self._keepers: Counter[int] = Counter()
        """By the ids of what is kept."""
        self.size_bytes = 0

    @contextmanager
    def request(self) -> Iterator[Reservation]:
        """What it takes within the block is given back at its end."""
        one = _Request(self)
        try:
            yield one
        finally:
            self._ended_bytes += one.give_back()
            if self._ended_bytes >= LARGE_BYTES:
                self._ended_bytes = 0
                self._on_large_end()

    def take(self, size_bytes: int) -> None:
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
        if id(data) not in self._keepers:
            self.take(len(data))
        self._keepers[id(data)] += 1

    def leave(self, data: Data) -> None:
        self._keepers[id(data)] -= 1
        if not self._keepers[id(data)]:
            del self._keepers[id(data)]
            self.size_bytes -= len(data)

    def metrics(self) -> Iterable[Metric]:
        """Metrics."""
        text = "Bytes of bodies, texts, tokens and fetched media that requests hold."
        yield gauge("triptych_held_bytes", text, self.size_bytes)
        yield gauge("triptych_held_limit_bytes", "Most that they may hold (--max-held-bytes).", self._limit)


class _Request:
    """``Reservation``."""

    def __init__(self, held: MemoryBudget) -> None:
        self._held = held
        self._own_bytes = 0
        self._kept: list[Data] = []

    def add(self, size_bytes: int) -> None:
        self._held.take(size_bytes)
        self._own_bytes += size_bytes

    def keep(self, data: Data) -> None:
        self._held.share(data)
        self._kept.append(data)

    def give_back(self) -> int:
        """Give all of it back; returns how many bytes it was."""
        self._held.size_bytes -= self._own_bytes
        for data in self._kept:
            self._held.leave(data)
        return self._own_bytes + sum(map(len, self._kept))
