"""Measures how late an event loop runs its timers: the cost of work that holds the loop or the interpreter lock."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from triptych.contracts.metric import Metric, counter, gauge

INTERVAL_S = 0.05
"""The interval of the timer, which costs some 0.05 % of a core."""
BLOCKED_S = 0.01

Tick = Callable[[float], None]


class LoopLag:
    """Sets timers in the running event loop and notes how late they run. A block between two timers is seen in part.

    A process that did not run because no core was free is late as well. ``late_s`` cannot tell the two apart, but
    ``on_tick`` may.
    """

    def __init__(self, interval_s: float = INTERVAL_S, on_tick: Tick | None = None) -> None:
        """``on_tick`` is called with the delay of every timer in seconds, for benchmarks."""
        self._interval_s = interval_s
        self._on_tick = on_tick
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.worst_s = 0.0
        """The longest delay since the last call of ``metrics``."""
        self.late_s = 0.0
        """The sum of all delays."""
        self.ticks = 0
        self.blocked = 0
        """Number of timers that were later than ``BLOCKED_S``."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[LoopLag]:
        """Measures the running event loop within the block."""
        self._loop = asyncio.get_running_loop()
        self._set()
        try:
            yield self
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def metrics(self) -> tuple[Metric, ...]:
        """Returns the metrics. The longest delay is that since the last call."""
        name = "triptych_event_loop_"
        worst, self.worst_s = self.worst_s, 0.0
        return (
            gauge(name + "lag_max_seconds", "Longest delay of a timer since the last scrape.", worst),
            counter(name + "lag_seconds_total", "Sum of the delays of timers.", self.late_s),
            counter(name + "ticks_total", "Timers of the event loop, due 20 times a second.", self.ticks),
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
