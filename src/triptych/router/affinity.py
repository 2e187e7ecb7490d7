"""Sends equal content to one worker, until that worker has too much: rendezvous hashing with bounded load.

Highest random weight (Thaler and Ravishankar, 1998) gives each name its own order of workers, so that a worker that
comes or goes changes only its own share. The bound on load is that of consistent hashing with bounded loads (Mirrokni,
Thorup and Zadimoghaddam, arXiv:1608.01350).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b

OVER_AVERAGE = 1.25
"""A worker takes new names up to this multiple of the average load."""


def _weight(name: str, worker: str) -> bytes:
    return blake2b(f"{name}\0{worker}".encode(), digest_size=8).digest()


def ranked(name: str, workers: Sequence[str]) -> list[str]:
    """Returns ``workers`` in the order in which they should take ``name``."""
    return sorted(workers, key=lambda worker: _weight(name, worker), reverse=True)


def home(name: str, workers: Sequence[str], load: Callable[[str], int]) -> str:
    """Returns the first worker of ``ranked`` that can take one more item within the bound.

    There always is one, because the bound is above the average. ``workers`` must not be empty.
    """
    if len(workers) == 1:
        return workers[0]
    bound = math.ceil(OVER_AVERAGE * (sum(map(load, workers)) + 1) / len(workers))
    return next(worker for worker in ranked(name, workers) if load(worker) + 1 <= bound)
