"""The interval of a median over pairs."""

from __future__ import annotations

import pytest

from benchmarks.before_after import interval


@pytest.mark.parametrize(("count", "low", "high"), [(6, 0, 5), (10, 1, 8), (12, 2, 9), (20, 5, 14)])
def test_the_interval_follows_the_binomial_distribution(count: int, low: int, high: int) -> None:
    assert interval([float(one) for one in reversed(range(count))]) == (low, high)


def test_too_few_pairs_have_no_interval() -> None:
    with pytest.raises(ValueError, match="5 pairs are too few"):
        interval([1.0] * 5)
