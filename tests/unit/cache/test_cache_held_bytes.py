"""What requests hold together is bounded, counted once, and given back."""

import pytest

from triptych.cache.memory_budget import LARGE_BYTES, MemoryBudget
from triptych.contracts.errors import PayloadTooLarge, TooManyRequests


def test_more_than_there_is_room_for_is_refused_and_what_is_held_stays():
    held = MemoryBudget(100)
    with held.request() as first, held.request() as second:
        first.add(60)
        second.add(30)
        with pytest.raises(TooManyRequests, match=r"90 bytes, and 11 more .* limit of 100 \(--max-held-bytes\)"):
            second.add(11)
        second.add(10)
        assert held.size_bytes == 100
    assert held.size_bytes == 0


def test_a_medium_that_several_keep_counts_once_until_the_last_lets_go():
    held, data = MemoryBudget(100), bytes(70)
    with held.request() as first:
        with held.request() as second:
            for one in (first, second, second):
                one.keep(data)
            assert held.size_bytes == 70
            with pytest.raises(TooManyRequests):
                second.keep(bytes(70))
        assert held.size_bytes == 70
    assert held.size_bytes == 0


def test_all_is_given_back_whatever_ends_the_request():
    held = MemoryBudget(100)

    def fail():
        with held.request() as one:
            one.add(5)
            one.keep(b"abc")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert held.size_bytes == 0


def test_what_there_is_never_room_for_is_too_large():
    with MemoryBudget(100).request() as one, pytest.raises(PayloadTooLarge, match="--max-held-bytes"):
        one.add(101)


def test_metrics_say_what_is_held_and_the_bound():
    held = MemoryBudget(100)
    with held.request() as one:
        one.add(7)
        values = {metric.name: metric.value for metric in held.metrics()}
    assert values == {"triptych_held_bytes": 7, "triptych_held_limit_bytes": 100}


@pytest.mark.parametrize(
    ("own", "kept", "told"), [(LARGE_BYTES - 1, 0, 0), (LARGE_BYTES - 1, 1, 1), (LARGE_BYTES, 0, 1)]
)
def test_the_end_of_a_large_request_is_told(own: int, kept: int, told: int):
    ends = []
    held = MemoryBudget(2 * LARGE_BYTES, lambda: ends.append(held.size_bytes))
    with held.request() as one:
        one.add(own)
        one.keep(bytes(kept))
        assert ends == []
    assert ends == [0] * told


def test_a_medium_that_comes_again_later_counts_again():
    held, data = MemoryBudget(100), bytes(70)
    for _ in range(2):
        with held.request() as one:
            one.keep(data)
            assert held.size_bytes == 70


def test_one_request_may_take_all_there_is():
    held = MemoryBudget(100)
    with held.request() as one:
        one.add(100)
        with pytest.raises(PayloadTooLarge):
            held.take(101)


def test_what_ended_before_the_last_call_does_not_count_for_the_next():
    calls = []
    held = MemoryBudget(2 * LARGE_BYTES, lambda: calls.append(1))
    for size_bytes, called in ((LARGE_BYTES, 1), (LARGE_BYTES - 1, 1), (1, 2)):
        with held.request() as one:
            one.add(size_bytes)
        assert len(calls) == called
