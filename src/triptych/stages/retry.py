"""The rules of trying again: what follows when a worker fails a request. Pure: tables, and classes without a clock.

Which stage failed decides nothing by itself, for it bounds what can happen there: a KV cache is lost where it is read
(decode), a medium is missing where it is used (encode and prefill), all else can happen at each. What counts is what
happened, and whether anything of the answer has been said.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from triptych.contracts.errors import (
    KvLost,
    MediaMissing,
    TriptychError,
    WorkerLost,
    WorkerSilent,
    WorkerStopped,
    WorkerUnreached,
)

MAX_ATTEMPTS = 3
"""Workers that may cost an attempt, before the first token and each time that an answer has to go on elsewhere."""
MAX_RESUMES = 4
"""Times that one answer goes on elsewhere: a request that ends every worker it comes to must not end them all."""
MAX_FRESH_PREFILLS = 1
"""Times that a KV cache which could not be read is made again, in one series of attempts."""
MAX_SILENCES = 1
"""Times that a request whose worker said nothing goes on elsewhere."""
MAX_FREE, FREE_S = 256, 15.0
"""Workers that may fail one series of attempts free of cost, and for how long; each one after that costs an attempt."""

AFTER_LOSS_S = 1.0
"""How long a worker whose connection broke is left out: a new connection tells whether it is gone."""
DISCOVERY_S = 6.0
"""Longer than discovery takes to drop a worker that is gone (5.5 s): one that is shown after this time has given a sign
of life since it was left out."""
AFTER_SILENCE_S = 30.0
MAX_LEFT_OUT_S = 60.0


class Event(Enum):
    """What a worker did to a request."""

    UNREACHED = "unreached"
    """No connection, or one that ended before the worker had taken the request."""
    DRAINS = "drains"
    """It refused the request, for it is about to stop."""
    STOPPED = "stopped"
    """It was told to stop, and its time to finish was over."""
    LOST = "lost"
    """It took the request, and its connection ended, or its engine."""
    SILENT = "silent"
    """It took the request and said nothing, to anybody, for the longest silence allowed."""
    SLOW = "slow"
    """It took the request and said nothing to it, though it spoke to others."""
    FULL = "full"
    """It has no room now."""
    KV_LOST = "kv lost"
    """It could not read the KV cache that another worker made."""
    MEDIA_MISSING = "media missing"
    """It lacks a medium, after it was sent all that there is."""
    FAULT = "fault"
    """It refused or failed the request, as any other would."""


class Said(Enum):
    """What the client has of the answer when it happens."""

    NOTHING = "nothing"
    ELSEWHERE = "elsewhere"
    """Tokens, and none of them by the worker that decodes in this attempt."""
    HERE = "here"
    """Tokens, the last ones by the worker that decodes in this attempt."""


class Rule(NamedTuple):
    """What follows."""

    costs: bool
    """It counts toward MAX_ATTEMPTS."""
    avoid_s: float
    """How long no request goes to the worker while another can take it; 0: others still do."""
    goes_on: bool
    """The request goes to another worker, within the bounds above."""
    suspect: bool
    """The worker fell, and the request may have done that (``stages.suspects``)."""
    asked_again: bool = False
    """An answer that waits for a worker asks this one again after a pause."""


_FREE = Rule(costs=False, avoid_s=DISCOVERY_S, goes_on=True, suspect=False)
_LOST = Rule(costs=True, avoid_s=AFTER_LOSS_S, goes_on=True, suspect=True)
_END = Rule(costs=True, avoid_s=0.0, goes_on=False, suspect=False)
_SILENT = Rule(costs=True, avoid_s=AFTER_SILENCE_S, goes_on=True, suspect=True)
_SLOW = Rule(costs=True, avoid_s=0.0, goes_on=True, suspect=False)

RULES: dict[tuple[Event, Said], Rule] = {
    # Nothing was begun: free, and the worker is left out until discovery has had the time to drop it.
    (Event.UNREACHED, Said.NOTHING): _FREE,
    (Event.UNREACHED, Said.ELSEWHERE): _FREE,
    (Event.DRAINS, Said.NOTHING): _FREE,
    (Event.DRAINS, Said.ELSEWHERE): _FREE,
    # Its operator's doing, not the request's.
    (Event.STOPPED, Said.NOTHING): _FREE,
    (Event.STOPPED, Said.ELSEWHERE): _FREE,
    (Event.STOPPED, Said.HERE): _FREE._replace(costs=True),
    # After tokens the bound is MAX_RESUMES, and the request is no suspect.
    (Event.LOST, Said.NOTHING): _LOST,
    (Event.LOST, Said.ELSEWHERE): _LOST,
    (Event.LOST, Said.HERE): _LOST._replace(suspect=False),
    # Once (MAX_SILENCES); a worker that falls silent after tokens of its own has cost its client that wait already.
    (Event.SILENT, Said.NOTHING): _SILENT,
    (Event.SILENT, Said.ELSEWHERE): _SILENT,
    (Event.SILENT, Said.HERE): _SILENT._replace(goes_on=False, suspect=False),
    (Event.SLOW, Said.NOTHING): _SLOW,
    (Event.SLOW, Said.ELSEWHERE): _SLOW,
    (Event.SLOW, Said.HERE): _END,
    (Event.FULL, Said.NOTHING): Rule(costs=True, avoid_s=0.0, goes_on=True, suspect=False),
    (Event.FULL, Said.ELSEWHERE): Rule(costs=False, avoid_s=0.0, goes_on=True, suspect=False, asked_again=True),
    (Event.FULL, Said.HERE): Rule(costs=True, avoid_s=0.0, goes_on=True, suspect=False),
    # A fresh prefill comes first (MAX_FRESH_PREFILLS); this is what follows when that was in vain.
    (Event.KV_LOST, Said.NOTHING): _END,
    (Event.KV_LOST, Said.ELSEWHERE): _END,
    (Event.KV_LOST, Said.HERE): _END,
    (Event.MEDIA_MISSING, Said.NOTHING): _END,
    (Event.MEDIA_MISSING, Said.ELSEWHERE): _END,
    (Event.MEDIA_MISSING, Said.HERE): _END,
    (Event.FAULT, Said.NOTHING): _END,
    (Event.FAULT, Said.ELSEWHERE): _END,
    (Event.FAULT, Said.HERE): _END,
}
"""All that can happen: who has spoken to a request has taken it, and neither refuses it nor is unreached."""

FELLS = frozenset(event for (event, _), rule in RULES.items() if rule.suspect)
"""Events of a worker that fell."""


def event_of(error: TriptychError) -> Event:
    """Return what ``error``, raised by a call to a worker, tells."""
    for kind, event in _EVENTS:
        if isinstance(error, kind):
            return event
    if isinstance(error, WorkerSilent):
        return Event.SLOW if error.speaks else Event.SILENT
    if error.code == "worker_draining":
        return Event.DRAINS
    return Event.FULL if error.status in (429, 503) else Event.FAULT


_EVENTS: tuple[tuple[type[TriptychError], Event], ...] = (
    (WorkerUnreached, Event.UNREACHED),
    (WorkerStopped, Event.STOPPED),
    (WorkerLost, Event.LOST),
    (KvLost, Event.KV_LOST),
    (MediaMissing, Event.MEDIA_MISSING),
)
"""Subclasses before their bases."""


@dataclass
class FreeMoves:
    """Counts what costs nothing, so that nothing is free for ever."""

    count: int = 0
    since: float = 0.0

    def allows(self, now: float) -> bool:
        """Count one more; False once it must cost an attempt."""
        if not self.count:
            self.since = now
        self.count += 1
        return self.count <= MAX_FREE and now - self.since <= FREE_S


class LeftOut:
    """Workers that get no request while another can take it. Times come from the caller, all of one clock."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._for_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._for_s)

    def add(self, worker: str, for_s: float, now: float) -> None:
        """Leave ``worker`` out for ``for_s``; twice as long as the last time, where nobody has heard of it since."""
        if not for_s or self._until.get(worker, 0.0) >= now + for_s:
            return
        if worker in self._for_s and worker not in self.at(now):
            for_s = min(max(for_s, 2 * self._for_s[worker]), MAX_LEFT_OUT_S)
        self._until[worker], self._for_s[worker] = now + for_s, for_s

    def at(self, now: float) -> set[str]:
        """Return who is left out now."""
        if not self._until:
            return set()
        return {worker for worker, until in self._until.items() if until > now}

    def heard(self, worker: str, now: float) -> None:
        """``worker`` has begun an answer. That of a request from before it was left out says nothing of it now."""
        if self._for_s and self._until.get(worker, now) < now:
            self.forget(worker)

    def forget(self, worker: str) -> None:
        """Discovery dropped ``worker``: should it come again, it is taken like any other."""
        self._until.pop(worker, None)
        self._for_s.pop(worker, None)
