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
"""Limit on failed workers that count, before the first token and again after each resumption."""
MAX_RESUMES = 4
"""Limit on resumptions of one answer, so that a request that kills its workers cannot kill them all."""
MAX_FRESH_PREFILLS = 1
"""Limit on repeated prefills, in one series of attempts, after a KV cache could not be read."""
MAX_SILENCES = 1
"""Limit on workers that a request may leave because they were silent."""
MAX_FREE, FREE_S = 256, 15.0
"""How many workers may fail one series of attempts without cost, and for how many seconds. Later failures count."""
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 0.5
"""The shortest and the longest pause between two searches for a worker that can continue an answer. Each pause is twice
as long as the previous one."""

AFTER_LOSS_S = 1.0
"""How long a worker whose connection broke is excluded. By then a new connection shows whether it is gone."""
DISCOVERY_S = 6.0
"""Longer than discovery takes to drop a worker that is gone (5.5 s): one that is shown after this time has given a sign
of life since it was excluded."""
AFTER_SILENCE_S = 30.0


class Failure(Enum):
    """The ways in which a worker fails a request."""

    UNREACHED = "unreached"
    """There was no connection, or it ended before the worker had taken the request."""
    DRAINS = "drains"
    """The worker refused the request because it is about to stop."""
    STOPPED = "stopped"
    """The worker was told to stop, and its time to finish was over."""
    LOST = "lost"
    """The worker took the request, and then its connection or its engine ended."""
    SILENT = "silent"
    """The worker took the request, and then sent nothing on any request for the longest silence allowed."""
    SLOW = "slow"
    """The worker took the request and sent nothing for it, although it answered other requests."""
    FULL = "full"
    """The worker has no room now."""
    KV_LOST = "kv lost"
    """The worker could not read the KV cache that another worker made."""
    MEDIA_MISSING = "media missing"
    """The worker lacks a medium, although it was sent everything that there is."""
    FAULT = "fault"
    """The worker refused or failed the request, as any other worker would."""


class Progress(Enum):
    """How much of the answer the client has when a worker fails."""

    NOTHING = "nothing"
    ELSEWHERE = "elsewhere"
    """The client has tokens, none of which the decode worker of this attempt made."""
    HERE = "here"
    """The client has tokens, of which the decode worker of this attempt made the last ones."""


class Rule(NamedTuple):
    """The consequences of one failure."""

    costs: bool
    """Whether the failure counts toward MAX_ATTEMPTS."""
    avoid_s: float
    """How long the worker gets no request while another can take it; 0 if other requests still go to it."""
    goes_on: bool
    """Whether the request goes to another worker, within the limits above."""
    suspect: bool
    """Whether the request may be the cause of the worker's end (``stages.suspects``)."""
    asked_again: bool = False
    """Whether an answer that waits for a worker asks this one again after a pause."""


_FREE = Rule(costs=False, avoid_s=DISCOVERY_S, goes_on=True, suspect=False)
_LOST = Rule(costs=True, avoid_s=AFTER_LOSS_S, goes_on=True, suspect=True)
_END = Rule(costs=True, avoid_s=0.0, goes_on=False, suspect=False)
_SILENT = Rule(costs=True, avoid_s=AFTER_SILENCE_S, goes_on=True, suspect=True)
_SLOW = Rule(costs=True, avoid_s=0.0, goes_on=True, suspect=False)

RULES: dict[tuple[Failure, Progress], Rule] = {
    # Nothing was begun, so it does not count; the worker is excluded until discovery has had the time to drop it.
    (Failure.UNREACHED, Progress.NOTHING): _FREE,
    (Failure.UNREACHED, Progress.ELSEWHERE): _FREE,
    (Failure.DRAINS, Progress.NOTHING): _FREE,
    (Failure.DRAINS, Progress.ELSEWHERE): _FREE,
    # The worker's operator caused it, and not the request.
    (Failure.STOPPED, Progress.NOTHING): _FREE,
    (Failure.STOPPED, Progress.ELSEWHERE): _FREE,
    (Failure.STOPPED, Progress.HERE): _FREE._replace(costs=True),
    # After tokens MAX_RESUMES is the limit, and the request is no suspect.
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
"""All combinations that can happen. A worker that has sent tokens has taken the request: it neither refuses it later
nor is unreached."""

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
