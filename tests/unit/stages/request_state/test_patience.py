"""How long an answer waits for a worker, and how much is free."""

from __future__ import annotations

import pytest

from triptych.stages.request_state.patience import FreeRetries, Patience
from triptych.stages.request_state.rules import FIRST_PAUSE_S, FREE_S, MAX_FREE, MAX_PAUSE_S


def waiting(limit_s: float = 10.0, now: float = 100.0) -> Patience:
    patience = Patience(limit_s)
    patience.begin(now)
    return patience


def test_nothing_is_waited_for_before_something_failed_and_after_it_went_on() -> None:
    patience = Patience(10.0)
    assert patience.pause(0.0) is None
    patience.begin(0.0)
    assert patience.pause(0.0) == FIRST_PAUSE_S
    patience.end()
    assert patience.pause(0.0) is None


def test_each_pause_is_twice_as_long_up_to_the_longest() -> None:
    patience, now, pauses = waiting(), 100.0, []
    for _ in range(6):
        pauses.append(patience.pause(now))
        patience.resume()
    expected = [FIRST_PAUSE_S * 2**n for n in range(6)]
    assert pauses == [min(one, MAX_PAUSE_S) for one in expected]
    assert pauses[-1] == MAX_PAUSE_S < expected[-1]


def test_the_limit_counts_from_the_first_failure_and_cuts_the_last_pause() -> None:
    patience = waiting(limit_s=1.0)
    patience.begin(100.9)
    assert patience.pause(100.98) == pytest.approx(0.02)
    patience.resume()
    assert patience.pause(101.0) is None
    assert patience.pause(101.1) is None


def test_the_rest_of_an_interrupted_pause_comes_first() -> None:
    patience = waiting()
    patience.pause(100.0)
    patience.resume()
    assert patience.pause(100.0) == 2 * FIRST_PAUSE_S
    assert patience.pause(100.0 + FIRST_PAUSE_S) == pytest.approx(FIRST_PAUSE_S)
    assert patience.pause(100.0 + 2 * FIRST_PAUSE_S) == 4 * FIRST_PAUSE_S, "it is over to the moment"


def test_an_answer_that_went_on_waits_anew_from_the_shortest_pause() -> None:
    patience = waiting(limit_s=1.0)
    patience.pause(100.0)
    patience.pause(100.0)
    patience.end()
    patience.begin(200.0)
    assert patience.pause(200.0) == FIRST_PAUSE_S
    assert patience.pause(200.9) is not None, "the limit counts anew"


def test_free_retries_are_bounded_in_number_and_time() -> None:
    retries = FreeRetries()
    assert all(retries.allows(50.0) for _ in range(MAX_FREE))
    assert not retries.allows(50.0)
    retries = FreeRetries()
    assert retries.allows(50.0)
    assert retries.allows(50.0 + FREE_S), "up to the moment"
    assert not retries.allows(50.1 + FREE_S)
