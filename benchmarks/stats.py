"""Computes percentiles, medians and ratios of lists of floats. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value below which ``share`` (0 to 1) of ``values`` are, interpolated; NaN if there are none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: Sequence[float]) -> float:
    """Returns the median of the numbers in ``values``, without NaNs."""
    return percentile([value for value in values if not math.isnan(value)], 0.5)


def median_ratio(values: Sequence[float | None], baseline: Sequence[float | None]) -> float:
    """Returns the median over rounds of value / baseline of the same round.

    Both lists have one entry a round, None where that round has no result. Ratios are made within a round and
    the median is taken afterwards, so that noise which hits a whole round cancels.
    """
    pairs = zip(values, baseline, strict=True)
    return median([value / base for value, base in pairs if value is not None and base])


def spread(values: Sequence[float]) -> float:
    """Returns the largest distance from the median, as a share of it, which shows how noisy the rounds were."""
    middle = median(values)
    if math.isnan(middle) or not middle:
        return math.nan
    return max(abs(value - middle) for value in values if not math.isnan(value)) / middle
