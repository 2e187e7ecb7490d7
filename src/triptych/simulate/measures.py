"""Records a run: durations in logarithmic buckets, and the times of each request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_BUCKETS_AN_E = 200
"""The number of buckets for each factor of e, so that a bucket is 0.5 % wide."""


class Histogram:
    """Counts durations in picoseconds."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, duration: int, times: int) -> None:
        bucket = round(math.log(max(1, duration)) * _BUCKETS_AN_E)
        self._counts[bucket] = self._counts.get(bucket, 0) + times

    def percentile(self, share: float) -> float:
        """Returns a percentile in picoseconds, exact to half a bucket; 0 if nothing was added."""
        left = share * sum(self._counts.values())
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                return math.exp(bucket / _BUCKETS_AN_E)
        return 0.0


@dataclass(slots=True)
class Record:
    """One request, with times in picoseconds since the start."""

    arrival: int
    prompt_tokens: int
    output_tokens: int
    first: int = -1
    """The time of the first token. Negative if there was none, because no engine has room for the request."""
    end: int = -1
    cached_tokens: int = 0

    @property
    def ttft(self) -> int:
        return self.first - self.arrival

    @property
    def tpot(self) -> float:
        """The mean time of a token after the first."""
        return (self.end - self.first) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


@dataclass(slots=True)
class Measures:
    """The measurements of one run."""

    records: list[Record] = field(default_factory=list)
    itl: Histogram = field(default_factory=Histogram)
    preemptions: int = 0


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest of the sorted ``values`` that so large a share does not exceed; 0 if there are none."""
    if not values:
        return 0.0
    return values[min(len(values) - 1, max(0, math.ceil(share * len(values)) - 1))]
