"""What to do when a supervised process ends: pure, so that it can be read and tested as a table."""

from __future__ import annotations

import msgspec

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 15.0
HEALTHY_AFTER_S = 60.0


class History(msgspec.Struct, frozen=True):
    """What is remembered of a process between its lives."""

    was_ever_ready: bool = False
    delay_s: float = 0.0
    """The delay before its present life; 0 for the first."""


def next_delay_s(previous_delay_s: float, ready_for_s: float) -> float:
    """Seconds to wait before the next life of a process that served ``ready_for_s`` seconds in this one."""
    if previous_delay_s <= 0 or ready_for_s >= HEALTHY_AFTER_S:
        return FIRST_DELAY_S
    return min(2 * previous_delay_s, MAX_DELAY_S)


def after_exit(history: History, ready_for_s: float | None) -> History | None:
    """The history with which to start the process again, or None when its start has failed for good.

    ``ready_for_s`` is None when the life that just ended never became ready. A process that was never ready
    at all would most likely fail again for the same reason, so that is for the user to hear.
    """
    if not history.was_ever_ready and ready_for_s is None:
        return None
    return History(was_ever_ready=True, delay_s=next_delay_s(history.delay_s, ready_for_s or 0.0))
