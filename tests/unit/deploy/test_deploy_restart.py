"""The decision whether and when a process that ended is started again."""

from __future__ import annotations

import pytest

from triptych.deploy.restart import History, after_exit, next_delay_s


@pytest.mark.parametrize(
    ("previous_s", "ready_for_s", "expected_s"),
    [
        (0.0, 0.0, 0.5),
        (0.5, 0.0, 1.0),
        (1.0, 59.9, 2.0),
        (4.0, 0.0, 8.0),
        (8.0, 0.0, 15.0),
        (15.0, 1.0, 15.0),
        (15.0, 60.0, 0.5),
        (0.0, 600.0, 0.5),
    ],
)
def test_the_delay_doubles_up_to_a_limit_and_is_reset_after_health(
    previous_s: float, ready_for_s: float, expected_s: float
) -> None:
    assert next_delay_s(previous_s, ready_for_s) == expected_s


@pytest.mark.parametrize(
    ("history", "ready_for_s", "expected"),
    [
        (History(), None, None),
        (History(), 0.0, History(True, 0.5)),
        (History(True, 0.5), None, History(True, 1.0)),
        (History(True, 8.0), 61.0, History(True, 0.5)),
    ],
    ids=["failed start", "crash after ready", "failed restart goes on", "crash after health"],
)
def test_only_a_process_that_was_never_ready_is_given_up(
    history: History, ready_for_s: float | None, expected: History | None
) -> None:
    assert after_exit(history, ready_for_s) == expected
