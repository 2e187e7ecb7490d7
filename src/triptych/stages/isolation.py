"""Carries out what ``stages.suspects`` knows: refuses requests in quarantine, and keeps suspects apart."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from triptych.contracts.errors import RequestQuarantined
from triptych.contracts.metric import Metric
from triptych.stages.apart import Apart
from triptych.stages.course import Course
from triptych.stages.suspects import Suspects

log = logging.getLogger("triptych.dispatch")

QUARANTINE_S, MAX_QUARANTINED, SUSPECT_WAIT_S = 600.0, 1024, 5.0


class Isolation:
    """For one event loop. While nothing is held against anybody, nothing is named and nothing costs anything."""

    def __init__(self, suspects: Suspects | None = None, wait_s: float = SUSPECT_WAIT_S) -> None:
        """``wait_s``: how long a suspect waits for a worker without another suspect; then it goes to any."""
        self._suspects = Suspects(QUARANTINE_S, MAX_QUARANTINED) if suspects is None else suspects
        self._apart = Apart()
        self._wait_s = wait_s
        self._refused = 0

    def metrics(self) -> Iterable[Metric]:
        """Metrics."""
        suspects = self._suspects
        suspects.expire(time.monotonic())
        text = "Workers that died or went silent without having said that they leave."
        yield Metric("triptych_workers_fallen", "counter", text, suspects.falls)
        text = "Requests remembered as suspects: a worker fell before it had answered them."
        yield Metric("triptych_requests_suspected", "gauge", text, suspects.suspected)
        text = "Requests in quarantine, by content: two workers fell under each (--quarantine-s)."
        yield Metric("triptych_requests_quarantined", "gauge", text, suspects.quarantined)
        text = "Answers that were refused because their request is in quarantine."
        yield Metric("triptych_quarantine_refusals", "counter", text, self._refused)

    def fell(self, worker: str, names: set[bytes]) -> None:
        """``worker`` fell while it had taken, and not answered, these requests."""
        if names:
            log.warning("worker %s fell with %d requests that it had not answered", worker, len(names))
        for name in self._suspects.fell(worker, names, time.monotonic()):
            log.error("request content %s felled two workers, %s the last: it is refused now", name.hex()[:16], worker)

    def forbidden(self, course: Course) -> set[str] | None:
        """Return the workers to which ``course`` may not go now, None for all of them. Raises RequestQuarantined."""
        if not self._suspects.any:
            return set()
        name, now = course.name(), time.monotonic()
        if (left_s := self._suspects.quarantine_s(name, now)) is not None:
            self._refused += 1
            raise RequestQuarantined(
                "two workers died or fell silent before they had answered this request, and it was the one thing "
                f"common to them: it is sent to no other, and refused for another {left_s:.0f} s (--quarantine-s)"
            )
        if not self._suspects.is_suspect(name) or self._patience_s(course, now) <= 0:
            return set()
        return None if self._apart.is_out(name) else self._apart.workers

    def _patience_s(self, course: Course, now: float) -> float:
        return self._wait_s if course.apart_since is None else course.apart_since + self._wait_s - now

    async def room(self, course: Course) -> None:
        """Wait until a suspect is answered or gone, at most for as long as ``course`` has patience."""
        now = time.monotonic()
        course.apart_since = now if course.apart_since is None else course.apart_since
        await self._apart.somebody_left(self._patience_s(course, now))

    def keep_apart(self, course: Course, workers: Iterable[str]) -> None:
        """``course`` is at ``workers``; if it is suspect, no other suspect goes there until ``course.alone`` closes."""
        if self._suspects.any and self._suspects.is_suspect(name := course.name()):
            course.alone.enter_context(self._apart.at(list(workers), name))

    def answered(self, course: Course) -> None:
        """A worker has answered ``course``: it is no suspect any more."""
        if self._suspects.any:
            course.alone.close()
            self._suspects.answered(course.name())
