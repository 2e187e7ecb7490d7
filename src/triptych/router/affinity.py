"""Rendezvous hashing with bounded load: equal content goes to one worker, until that one has too much.

Highest random weight (Thaler and Ravishankar, 1998) gives each name its own order of workers, of which a worker
that comes or goes changes only its own share; the bound on load is that of consistent hashing with bounded
loads (Mirrokni, Thorup and Zadimoghaddam, arXiv:1608.01350).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b

OVER_AVERAGE = 1.25
"""A worker takes new names up to so many times the average load."""


def _weight(name: str, worker: str) -> bytes:
    return blake2b(f"{name}\0{worker}".encode(), digest_size=8).digest()


def ranked(name: str, workers: Sequence[str]) -> list[str]:
    """``workers`` in the order in which they should take ``name``."""
    return sorted(workers, key=lambda worker: _weight(name, worker), reverse=True)


def home(name: str, workers: Sequence[str], load: Callable[[str], int]) -> str:
    """The first of ``ranked`` that is not overloaded: one more item keeps it within the bound.

    The bound is above the average, so there always is one. ``workers`` must not be empty.
    """
    if len(workers) == 1:
        return workers[0]
    bound = math.ceil(OVER_AVERAGE * (sum(map(load, workers)) + 1) / len(workers))
    return next(worker for worker in ranked(name, workers) if load(worker) + 1 <= bound)
