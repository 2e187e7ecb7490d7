"""The memory that requests hold is bounded, counted once, and given back."""

import pytest

from triptych.cache.memory_budget import LARGE_BYTES, MemoryBudget
from triptych.contracts.errors import PayloadTooLarge, TooManyRequests


def test_a_request_over_the_budget_is_refused_and_others_keep_theirs():
    budget = MemoryBudget(100)
    with budget.request() as first, budget.request() as second:
        first.add(60)
        second.add(30)
        with pytest.raises(TooManyRequests, match=r"90 bytes, and 11 more .* limit of 100 \(--max-held-bytes\)"):
            second.add(11)
        second.add(10)
        assert budget.size_bytes == 100
    assert budget.size_bytes == 0


def test_a_shared_medium_counts_once_until_its_last_holder_leaves():
    budget, data = MemoryBudget(100), bytes(70)
    with budget.request() as first:
        with budget.request() as second:
            for one in (first, second, second):
                one.keep(data)
            assert budget.size_bytes == 70
            with pytest.raises(TooManyRequests):
                second.keep(bytes(70))
        assert budget.size_bytes == 70
    assert budget.size_bytes == 0


def test_a_reservation_is_given_back_however_the_request_ends():
    budget = MemoryBudget(100)

    def fail():
        with budget.request() as one:
            one.add(5)
            one.keep(b"abc")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert budget.size_bytes == 0


def test_a_request_larger_than_the_whole_budget_is_too_large():
    with MemoryBudget(100).request() as one, pytest.raises(PayloadTooLarge, match="--max-held-bytes"):
        one.add(101)


def test_metrics_have_the_held_bytes_and_the_limit():
    budget = MemoryBudget(100)
    with budget.request() as one:
        one.add(7)
        values = {metric.name: metric.value for metric in budget.metrics()}
    assert values == {"triptych_held_bytes": 7, "triptych_held_limit_bytes": 100}


@pytest.mark.parametrize(
    ("own", "kept", "told"), [(LARGE_BYTES - 1, 0, 0), (LARGE_BYTES - 1, 1, 1), (LARGE_BYTES, 0, 1)]
)
def test_on_large_end_is_called_after_large_requests(own: int, kept: int, told: int):
    ends = []
    budget = MemoryBudget(2 * LARGE_BYTES, lambda: ends.append(budget.size_bytes))
    with budget.request() as one:
        one.add(own)
        one.keep(bytes(kept))
        assert ends == []
    assert ends == [0] * told


def test_a_medium_that_comes_again_later_counts_again():
    budget, data = MemoryBudget(100), bytes(70)
    for _ in range(2):
        with budget.request() as one:
            one.keep(data)
            assert budget.size_bytes == 70


def test_one_request_may_take_all_there_is():
    budget = MemoryBudget(100)
    with budget.request() as one:
        one.add(100)
        with pytest.raises(PayloadTooLarge):
            budget.take(101)


def test_requests_that_ended_before_the_last_call_do_not_count_for_the_next():
    calls = []
    budget = MemoryBudget(2 * LARGE_BYTES, lambda: calls.append(1))
    for size_bytes, called in ((LARGE_BYTES, 1), (LARGE_BYTES - 1, 1), (1, 2)):
        with budget.request() as one:
            one.add(size_bytes)
        assert len(calls) == called
