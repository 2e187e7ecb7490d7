"""CPU time of work that must stay cheap, whatever else the machine does."""

from __future__ import annotations

import time
from collections.abc import Callable


def least_cpu_s(work: Callable[[], object], tries: int = 3) -> float:
    """Return the least CPU time of this thread that ``work`` took in so many tries; a busy machine slows only some."""
    took = []
    for _ in range(tries):
        begun = time.thread_time()
        work()
        took.append(time.thread_time() - begun)
    return min(took)
