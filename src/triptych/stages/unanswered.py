"""Knows the requests that workers have not answered yet: one of them may be the cause when a worker is lost."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

LINGER_S = 10.0
"""How long a request counts after its client left. A client may leave before a hanging worker is noticed."""
MAX_LINGERING = 256
"""Limit on the requests of one worker whose clients left."""


class Taken(Protocol):
    """The part of ``planes.request.base.Call`` that is needed here."""

    @property
    def taken(self) -> bool: ...


class Visit:
    """The visit of one request at one worker."""

    __slots__ = ("answered", "call", "name", "worker")

    def __init__(self, worker: str, name: Callable[[], bytes], call: Taken) -> None:
        """``name`` names the content of the request; it is called only when the worker is lost or the client leaves."""
        self.worker, self.name, self.call = worker, name, call
        self.answered = False


class Unanswered:
    """Keeps account of visits that have not been answered. It costs nothing for each token."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at: dict[str, set[Visit]] = {}
        self._lingering: dict[str, OrderedDict[bytes, float]] = {}
        """For each worker, the names of requests that were given up there, and the time until which they count."""

    def begin(self, visit: Visit) -> None:
        """Counts a request that goes to a worker."""
        self._at.setdefault(visit.worker, set()).add(visit)

    def end(self, visit: Visit) -> None:
        """Stops counting the visit, because the worker has answered or the visit is over. May be called twice."""
        visit.answered = True
        if (there := self._at.get(visit.worker)) is not None:
            there.discard(visit)
            if not there:
                del self._at[visit.worker]

    def leave(self, visit: Visit, *, given_up: bool) -> None:
        """Ends the visit. One that was ``given_up`` unanswered still counts for a while if the worker had taken it."""
        if given_up and visit.call.taken and not visit.answered:
            self._linger(visit.worker, visit.name())
        self.end(visit)

    def fell(self, worker: str) -> set[bytes]:
        """Returns the names of requests that ``worker`` took and did not answer. A second call omits them."""
        there = self._at.get(worker, set())
        taken = [visit for visit in there if visit.call.taken]
        for visit in taken:
            self.end(visit)
        now = self._clock()
        left = {name for name, until in self._lingering.pop(worker, {}).items() if until > now}
        return {visit.name() for visit in taken} | left

    def _linger(self, worker: str, name: bytes) -> None:
        now = self._clock()
        self._lingering = {
            other: names for other, names in self._lingering.items() if names and next(reversed(names.values())) > now
        }
        names = self._lingering.setdefault(worker, OrderedDict())
        names[name] = now + LINGER_S
        names.move_to_end(name)
        if len(names) > MAX_LINGERING:
            names.popitem(last=False)
