"""Limits how long a generation waits, and how often it is retried without cost. The caller gives the time."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.stages.request_state.rules import FIRST_PAUSE_S, FREE_S, MAX_FREE, MAX_PAUSE_S


@dataclass
class Patience:
    """Plans the pauses of an answer that was cut off and waits for a worker. Each is longer; their sum is limited."""

    limit_s: float
    _until: float | None = None
    _pause_s: float = FIRST_PAUSE_S
    _pause_until: float | None = None
    """The end of a pause that may have been interrupted."""

    def begin(self, now: float) -> None:
        """Starts the wait. The limit counts from the first call since the last ``end``."""
        if self._until is None:
            self._until, self._pause_s = now + self.limit_s, FIRST_PAUSE_S

    def end(self) -> None:
        """Ends the wait, because the answer goes on."""
        self._until = self._pause_until = None

    def pause(self, now: float) -> float | None:
        """Returns the seconds to wait before the next attempt, or None if the time is over.

        The rest of a pause that was interrupted comes first.
        """
        if self._until is None or now >= self._until:
            return None
        if self._pause_until is not None and self._pause_until > now:
            return self._pause_until - now
        pause_s, self._pause_s = min(self._pause_s, self._until - now), min(2 * self._pause_s, MAX_PAUSE_S)
        self._pause_until = now + pause_s
        return pause_s

    def resume(self) -> None:
        """Takes note that a pause has ended without being interrupted."""
        self._pause_until = None


@dataclass
class FreeRetries:
    """Counts failures that cost no attempt, so that their number is limited."""

    count: int = 0
    since: float = 0.0

    def allows(self, now: float) -> bool:
        """Counts one more. Returns False if it must cost an attempt."""
        if not self.count:
            self.since = now
        self.count += 1
        return self.count <= MAX_FREE and now - self.since <= FREE_S
