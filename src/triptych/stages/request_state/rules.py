"""Defines what follows when a worker fails a request, as a table.

The stage that failed decides nothing by itself; it only limits which failures are possible. A KV cache is lost where it
is read (decode), a medium is missing where it is used (encode and prefill), and all others can happen at each stage.
The failure decides, and whether the client has any of the answer.
"""

from __future__ import annotations

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
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 0.5
"""Between two looks for a worker that goes on with an answer; each pause is twice as long as the one before."""

AFTER_LOSS_S = 1.0
"""How long a worker whose connection broke is excluded: a new connection tells whether it is gone."""
DISCOVERY_S = 6.0
"""Longer than discovery takes to drop a worker that is gone (5.5 s): one that is shown after this time has given a sign
of life since it was excluded."""
AFTER_SILENCE_S = 30.0


class Failure(Enum):
    """The ways in which a worker fails a request."""

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


class Progress(Enum):
    """How much of the answer the client has when it happens."""

    NOTHING = "nothing"
    ELSEWHERE = "elsewhere"
    """Tokens, and none of them by the worker that decodes in this attempt."""
    HERE = "here"
    """Tokens, the last ones by the worker that decodes in this attempt."""


class Rule(NamedTuple):
    """The consequences of one failure."""

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

RULES: dict[tuple[Failure, Progress], Rule] = {
    # Nothing was begun: free, and the worker is excluded until discovery has had the time to drop it.
    (Failure.UNREACHED, Progress.NOTHING): _FREE,
    (Failure.UNREACHED, Progress.ELSEWHERE): _FREE,
    (Failure.DRAINS, Progress.NOTHING): _FREE,
    (Failure.DRAINS, Progress.ELSEWHERE): _FREE,
    # Its operator's doing, not the request's.
    (Failure.STOPPED, Progress.NOTHING): _FREE,
    (Failure.STOPPED, Progress.ELSEWHERE): _FREE,
    (Failure.STOPPED, Progress.HERE): _FREE._replace(costs=True),
    # After tokens the bound is MAX_RESUMES, and the request is no suspect.
    (Failure.LOST, Progress.NOTHING): _LOST,
    (Failure.LOST, Progress.ELSEWHERE): _LOST,
    (Failure.LOST, Progress.HERE): _LOST._replace(suspect=False),
    # Once (MAX_SILENCES); a worker that falls silent after tokens of its own has cost its client that wait already.
    (Failure.SILENT, Progress.NOTHING): _SILENT,
    (Failure.SILENT, Progress.ELSEWHERE): _SILENT,
    (Failure.SILENT, Progress.HERE): _SILENT._replace(goes_on=False, suspect=False),
    (Failure.SLOW, Progress.NOTHING): _SLOW,
    (Failure.SLOW, Progress.ELSEWHERE): _SLOW,
    (Failure.SLOW, Progress.HERE): _END,
    (Failure.FULL, Progress.NOTHING): Rule(costs=True, avoid_s=0.0, goes_on=True, suspect=False),
    (Failure.FULL, Progress.ELSEWHERE): Rule(costs=False, avoid_s=0.0, goes_on=True, suspect=False, asked_again=True),
    (Failure.FULL, Progress.HERE): Rule(costs=True, avoid_s=0.0, goes_on=True, suspect=False),
    # A fresh prefill comes first (MAX_FRESH_PREFILLS); this is what follows when that was in vain.
    (Failure.KV_LOST, Progress.NOTHING): _END,
    (Failure.KV_LOST, Progress.ELSEWHERE): _END,
    (Failure.KV_LOST, Progress.HERE): _END,
    (Failure.MEDIA_MISSING, Progress.NOTHING): _END,
    (Failure.MEDIA_MISSING, Progress.ELSEWHERE): _END,
    (Failure.MEDIA_MISSING, Progress.HERE): _END,
    (Failure.FAULT, Progress.NOTHING): _END,
    (Failure.FAULT, Progress.ELSEWHERE): _END,
    (Failure.FAULT, Progress.HERE): _END,
}
"""All that can happen: who has spoken to a request has taken it, and neither refuses it nor is unreached."""

FELLS = frozenset(failure for (failure, _), rule in RULES.items() if rule.suspect)
"""Failures of a worker that fell."""


def failure_of(error: TriptychError) -> Failure:
    """Returns how the worker failed that answered a call with ``error``."""
    for kind, failure in _FAILURES:
        if isinstance(error, kind):
            return failure
    if isinstance(error, WorkerSilent):
        return Failure.SLOW if error.speaks else Failure.SILENT
    if error.code == "worker_draining":
        return Failure.DRAINS
    return Failure.FULL if error.status in (429, 503) else Failure.FAULT


_FAILURES: tuple[tuple[type[TriptychError], Failure], ...] = (
    (WorkerUnreached, Failure.UNREACHED),
    (WorkerStopped, Failure.STOPPED),
    (WorkerLost, Failure.LOST),
    (KvLost, Failure.KV_LOST),
    (MediaMissing, Failure.MEDIA_MISSING),
)
"""Subclasses before their bases."""
