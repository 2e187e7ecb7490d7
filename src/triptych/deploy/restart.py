"""Decides what happens when a supervised process ends. Pure, and tested as a table."""

from __future__ import annotations

import msgspec

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 15.0
HEALTHY_AFTER_S = 60.0


class History(msgspec.Struct, frozen=True):
    """The state that is kept of a process from one start to the next."""

    was_ever_ready: bool = False
    delay_s: float = 0.0
    """The delay before its current start; 0 for the first."""


def next_delay_s(previous_delay_s: float, ready_for_s: float) -> float:
    """Returns the delay, in seconds, before the next start of a process that was ready for ``ready_for_s`` seconds."""
    if previous_delay_s <= 0 or ready_for_s >= HEALTHY_AFTER_S:
        return FIRST_DELAY_S
    return min(2 * previous_delay_s, MAX_DELAY_S)


def after_exit(history: History, ready_for_s: float | None) -> History | None:
    """Returns the history with which the process is started again, or None if its start has failed for good.

    ``ready_for_s`` is None if the process did not become ready this time. A process that was never ready would
    probably fail again for the same reason, so the user is told.
    """
    if not history.was_ever_ready and ready_for_s is None:
        return None
    return History(was_ever_ready=True, delay_s=next_delay_s(history.delay_s, ready_for_s or 0.0))
