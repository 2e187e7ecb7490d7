"""Refuses requests in quarantine, and keeps suspects apart from each other (``stages.suspects``)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

from triptych.contracts.errors import RequestQuarantined
from triptych.contracts.metric import Metric, counter, gauge
from triptych.stages.apart import Apart
from triptych.stages.suspects import Suspects

log = logging.getLogger("triptych.dispatch")

Name = Callable[[], bytes]

QUARANTINE_S, MAX_QUARANTINED, SUSPECT_WAIT_S = 600.0, 1024, 5.0


class Waiter:
    """One request that may have to wait for other suspects."""

    def __init__(self, name: Name) -> None:
        """``name`` returns the name of its content. It is called only while there are suspects or a quarantine."""
        self.name = name
        self.since: float | None = None
        """When it began to wait for a worker without another suspect."""


class Isolation:
    """Tells which workers a request may go to. Serves one event loop.

    While there is neither a suspect nor a quarantine, no request is named and nothing costs time.
    """

    def __init__(self, suspects: Suspects | None = None, wait_s: float = SUSPECT_WAIT_S) -> None:
        """A suspect waits ``wait_s`` for a worker without another suspect, and then goes to any worker."""
        self._suspects = Suspects(QUARANTINE_S, MAX_QUARANTINED) if suspects is None else suspects
        self._apart = Apart()
        self._wait_s = wait_s
        self._refused = 0
        self.on_quarantine: Callable[[bytes, float], None] = lambda sealed, left_s: None
        """Called for each request that is put in quarantine here, with its sealed name and its seconds."""

    def metrics(self) -> Iterable[Metric]:
        """Returns the counts of suspects and of the quarantine."""
        suspects = self._suspects
        suspects.expire(time.monotonic())
        text = "Workers that died or fell silent without having announced that they leave."
        yield counter("triptych_workers_lost_total", text, suspects.falls)
        text = "Requests remembered as suspects: a worker fell before it had answered them."
        yield gauge("triptych_requests_suspected", text, suspects.suspected)
        text = "Requests in quarantine, by content: two workers fell under each (--quarantine-s)."
        yield gauge("triptych_requests_quarantined", text, suspects.quarantined)
        text = "Requests refused because their content is in quarantine."
        yield counter("triptych_quarantine_refusals_total", text, self._refused)

    def fell(self, worker: str, names: set[bytes]) -> None:
        """Takes note that ``worker`` was lost after it had taken these requests and before it answered them."""
        if names:
            log.warning("worker %s fell with %d requests that it had not answered", worker, len(names))
        for name in self._suspects.fell(worker, names, time.monotonic()):
            log.error("request content %s felled two workers, %s the last: it is refused now", name.hex()[:16], worker)
            left_s = self._suspects.quarantine_s(name, time.monotonic())
            self.on_quarantine(self._suspects.seal(name), left_s or 0.0)

    def quarantine(self, sealed: Iterable[tuple[bytes, float]]) -> None:
        """Refuses requests that others put in quarantine, by their sealed names, each for its number of seconds."""
        self._suspects.quarantine(sealed, time.monotonic())

    def release(self, sealed: bytes) -> None:
        """Takes the request of this sealed name out of quarantine."""
        self._suspects.release(sealed)

    def quarantined_for(self) -> dict[bytes, float]:
        """Returns all sealed names in quarantine, each with the seconds that it has left."""
        return self._suspects.quarantined_for(time.monotonic())

    def forbidden(self, waiter: Waiter) -> set[str] | None:
        """Returns the workers to which a request may not go now, None for all of them. Raises RequestQuarantined."""
        if not self._suspects.any:
            return set()
        name, now = waiter.name(), time.monotonic()
        if (left_s := self._suspects.quarantine_s(name, now)) is not None:
            self._refused += 1
            raise RequestQuarantined(
                "two workers died or fell silent before they had answered this request, and it was the one thing "
                f"common to them: it is sent to no other, and refused for another {left_s:.0f} s (--quarantine-s)"
            )
        if not self._suspects.is_suspect(name) or self._patience_s(waiter, now) <= 0:
            return set()
        return None if self._apart.is_out(name) else self._apart.workers

    def _patience_s(self, waiter: Waiter, now: float) -> float:
        return self._wait_s if waiter.since is None else waiter.since + self._wait_s - now

    async def room(self, waiter: Waiter) -> None:
        """Waits until a suspect is answered or gone, at most until the time limit of ``waiter``."""
        now = time.monotonic()
        waiter.since = now if waiter.since is None else waiter.since
        await self._apart.somebody_left(self._patience_s(waiter, now))

    def keep_apart(self, name: Name, workers: Iterable[str]) -> AbstractContextManager[None]:
        """Keeps other suspects away from ``workers`` during the block, if the request is a suspect."""
        if self._suspects.any and self._suspects.is_suspect(suspect := name()):
            return self._apart.at(list(workers), suspect)
        return nullcontext()

    def answered(self, name: Name) -> None:
        """Takes note that a worker has answered the request: it is no longer a suspect."""
        if self._suspects.any:
            self._suspects.answered(name())
