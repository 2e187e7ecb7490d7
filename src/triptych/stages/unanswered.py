"""Requests that are at workers and have been answered nothing there yet: what may be the cause when one falls."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

LINGER_S = 10.0
"""How long a request whose client left counts: a worker that hangs is noticed later than an impatient client leaves."""
MAX_LINGERING = 256
"""Of one worker."""


class Taken(Protocol):
    """What is needed of ``planes.request.base.Call``."""

    @property
    def taken(self) -> bool: ...


class Visit:
    """One request at one worker."""

    __slots__ = ("answered", "call", "name", "worker")

    def __init__(self, worker: str, name: Callable[[], bytes], call: Taken) -> None:
        """``name`` names what the request asks for; it is not called unless something happens."""
        self.worker, self.name, self.call = worker, name, call
        self.answered = False


class Unanswered:
    """Accounts by request, never by token."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at: dict[str, set[Visit]] = {}
        self._lingering: dict[str, OrderedDict[bytes, float]] = {}
        """By worker: names of requests that were given up there, and until when they count."""

    def begin(self, visit: Visit) -> None:
        """A request goes to a worker."""
        self._at.setdefault(visit.worker, set()).add(visit)

    def end(self, visit: Visit) -> None:
        """The worker has answered something, or the visit is over. May be called twice."""
        visit.answered = True
        if (there := self._at.get(visit.worker)) is not None:
            there.discard(visit)
            if not there:
                del self._at[visit.worker]

    def leave(self, visit: Visit, *, given_up: bool) -> None:
        """The visit is over. What was ``given_up`` unanswered, though the worker had taken it, counts for a while."""
        if given_up and visit.call.taken and not visit.answered:
            self._linger(visit.worker, visit.name())
        self.end(visit)

    def fell(self, worker: str) -> set[bytes]:
        """Name what ``worker`` had taken and not answered; the next call no longer tells of these."""
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
            one: names for one, names in self._lingering.items() if names and next(reversed(names.values())) > now
        }
        names = self._lingering.setdefault(worker, OrderedDict())
        names[name] = now + LINGER_S
        names.move_to_end(name)
        if len(names) > MAX_LINGERING:
            names.popitem(last=False)
