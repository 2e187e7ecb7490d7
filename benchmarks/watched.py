"""Runs the command ``triptych ...`` and watches its event loop: ``python -m benchmarks.watched FILE ...``.

A timer of the loop, due every 2 ms, records how late it is. Its lateness is split into the time that the loop's thread
spent on a core (our callbacks), the time that it waited for a core (other processes), and the rest (waits for the
interpreter lock, and blocking system calls). At the end, FILE gets the worst of each as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from triptych.cli.main import main
from triptych.observability import lag

TICK_S = 0.002
KEPT = 40


class Watch:
    """Watches the ticks of one loop."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ticks: list[tuple[float, float, float]] = []
        """The latest ticks: (lateness, of which on a core, of which waiting for a core), in seconds."""
        self._count = 0
        self._worst_own_s = self._worst_blocked_s = self._worst_rest_s = 0.0
        self._before = (0.0, 0.0)

    def tick(self, late_s: float) -> None:
        cpu_s, queue_s = time.thread_time(), _queued_s()
        spent_s, queued_s = cpu_s - self._before[0], queue_s - self._before[1]
        self._before = (cpu_s, queue_s)
        self._count += 1
        if self._count == 1:
            return
        # The thread's time since the last tick includes what it did before it was due.
        own_s, queued_s = min(spent_s, late_s), min(queued_s, late_s)
        self._worst_own_s = max(self._worst_own_s, own_s)
        self._worst_blocked_s = max(self._worst_blocked_s, late_s - queued_s)
        self._worst_rest_s = max(self._worst_rest_s, late_s - queued_s - own_s)
        self._ticks.append((late_s, own_s, queued_s))
        if len(self._ticks) > 4 * KEPT:
            self._prune()

    def _prune(self) -> None:
        self._ticks = sorted(self._ticks, reverse=True)[:KEPT]

    def write(self) -> None:
        self._prune()
        self._file.write_text(
            json.dumps(
                {
                    "ticks": self._count,
                    "worst_late_s": self._ticks[0][0] if self._ticks else 0.0,
                    "worst_own_s": self._worst_own_s,
                    "worst_rest_s": self._worst_rest_s,
                    "worst_blocked_s": self._worst_blocked_s,
                    "latest": self._ticks[:5],
                }
            )
        )


def _queued_s() -> float:
    """Returns the time for which this thread was ready without a core, since its start."""
    return int(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1]) / 1e9


def watch(file: Path, words: list[str]) -> int:
    one = Watch(file)
    plain = lag.LoopLag.__init__
    lag.LoopLag.__init__ = lambda self: plain(self, TICK_S, one.tick)  # type: ignore[method-assign]
    try:
        return main(words)
    finally:
        one.write()


if __name__ == "__main__":
    sys.exit(watch(Path(sys.argv[1]), sys.argv[2:]))
