"""How late an event loop runs its timers: what work that holds the loop, or the interpreter lock, costs all others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from triptych.contracts.metric import Metric, counter, gauge

INTERVAL_S = 0.05
"""A timer so often costs some 0.05 % of a core."""
BLOCKED_S = 0.01

Tick = Callable[[float], None]


class LoopLag:
    """A timer of the running event loop that notes how late it is. What blocks between two timers is seen in part.

    A process that the system did not run, for want of a free core, is late as well; ``late_s`` cannot tell the two
    apart, but ``on_tick`` may.
    """

    def __init__(self, interval_s: float = INTERVAL_S, on_tick: Tick | None = None) -> None:
        """``on_tick`` is called with every lateness, in seconds (benchmarks)."""
        self._interval_s = interval_s
        self._on_tick = on_tick
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.worst_s = 0.0
        """Since the last ``samples``."""
        self.late_s = 0.0
        """All of it, added up."""
        self.ticks = 0
        self.blocked = 0
        """Ticks later than ``BLOCKED_S``."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[LoopLag]:
        """Within the block, in whose event loop it is."""
        self._loop = asyncio.get_running_loop()
        self._set()
        try:
            yield self
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def metrics(self) -> tuple[Metric, ...]:
        """Metrics; the worst is that since the last call."""
        name = "triptych_event_loop_"
        worst, self.worst_s = self.worst_s, 0.0
        return (
            gauge(name + "lag_max_seconds", "Longest delay of a timer since the last scrape.", worst),
            counter(name + "lag_seconds_total", "Delays of timers, added up.", self.late_s),
            counter(name + "ticks_total", "Timers that were looked at.", self.ticks),
            counter(name + "blocked_total", "Timers that were late by more than 10 ms.", self.blocked),
        )

    def _set(self) -> None:
        self._due = time.monotonic() + self._interval_s
        self._timer = self._loop.call_later(self._interval_s, self._tick)

    def _tick(self) -> None:
        late_s = max(0.0, time.monotonic() - self._due)
        self.ticks += 1
        self.late_s += late_s
        self.worst_s = max(self.worst_s, late_s)
        self.blocked += late_s > BLOCKED_S
        if self._on_tick is not None:
            self._on_tick(late_s)
        self._set()
