"""The rules of trying again, as tables."""

from __future__ import annotations

import pytest

from triptych.contracts.answer import TokenDelta
from triptych.contracts.errors import (
    BadRequest,
    DeadlineExceeded,
    KvLost,
    MediaMissing,
    TooManyRequests,
    TriptychError,
    Unavailable,
    WorkerLost,
    WorkerSilent,
    WorkerStopped,
    WorkerUnreached,
)
from triptych.contracts.request import Sampling
from triptych.stages.excluded import MAX_EXCLUDED_S, ExcludedWorkers
from triptych.stages.request_state import rules
from triptych.stages.request_state.events import Begin, Failed, GiveUp, TimePassed, Wait
from triptych.stages.request_state.machine import RequestState
from triptych.stages.request_state.patience import FreeRetries
from triptych.stages.request_state.rules import (
    AFTER_LOSS_S,
    AFTER_SILENCE_S,
    DISCOVERY_S,
    FELLS,
    FREE_S,
    MAX_ATTEMPTS,
    MAX_FREE,
    RULES,
    Failure,
    Progress,
    failure_of,
)


def silent(*, speaks: bool) -> WorkerSilent:
    error = WorkerSilent("silent")
    error.speaks = speaks
    return error


UNREACHED, LOST, STOPPED = WorkerUnreached("unreached"), WorkerLost("lost"), WorkerStopped("stopped")
DRAINS, FULL = Unavailable("drains", code="worker_draining"), TooManyRequests("full")
SILENT, SLOW = silent(speaks=False), silent(speaks=True)

EVENTS: list[tuple[TriptychError, Failure]] = [
    (UNREACHED, Failure.UNREACHED),
    (LOST, Failure.LOST),
    (STOPPED, Failure.STOPPED),
    (SILENT, Failure.SILENT),
    (SLOW, Failure.SLOW),
    (DRAINS, Failure.DRAINS),
    (FULL, Failure.FULL),
    (Unavailable("no room", code="arena_full"), Failure.FULL),
    (KvLost("unread"), Failure.KV_LOST),
    (MediaMissing("missing"), Failure.MEDIA_MISSING),
    (BadRequest("no"), Failure.FAULT),
    (TriptychError("broken"), Failure.FAULT),
    (DeadlineExceeded("the medium's host"), Failure.FAULT),
]


@pytest.mark.parametrize(("error", "event"), EVENTS, ids=lambda one: str(one))
def test_each_error_maps_to_a_failure(error: TriptychError, event: Failure) -> None:
    assert failure_of(error) is event


def test_there_is_a_rule_for_all_that_can_happen() -> None:
    never = {(event, Progress.HERE) for event in (Failure.UNREACHED, Failure.DRAINS)}
    assert {(event, said) for event in Failure for said in Progress} - never == set(RULES)
    assert {Failure.LOST, Failure.SILENT} == FELLS


def test_only_what_a_worker_took_and_did_not_answer_is_held_against_a_request() -> None:
    suspects = {key for key, rule in RULES.items() if rule.suspect}
    assert suspects == {
        (event, said) for event in (Failure.LOST, Failure.SILENT) for said in (Progress.NOTHING, Progress.ELSEWHERE)
    }
    free = {event for (event, said), rule in RULES.items() if said is Progress.NOTHING and not rule.costs}
    assert free == {Failure.UNREACHED, Failure.DRAINS, Failure.STOPPED}


AVOIDED_S = {
    Failure.UNREACHED: DISCOVERY_S,
    Failure.DRAINS: DISCOVERY_S,
    Failure.STOPPED: DISCOVERY_S,
    Failure.LOST: AFTER_LOSS_S,
    Failure.SILENT: AFTER_SILENCE_S,
}
"""Others than these are not avoided: the worker is well, and serves other requests."""


def test_how_long_a_worker_is_avoided_depends_on_its_failure_only() -> None:
    assert {key: rule.avoid_s for key, rule in RULES.items()} == {key: AVOIDED_S.get(key[0], 0.0) for key in RULES}


def test_once_a_worker_has_spoken_each_failure_counts_as_an_attempt() -> None:
    assert all(rule.costs for (_, said), rule in RULES.items() if said is Progress.HERE)
    waited_for = {failure for (failure, said), rule in RULES.items() if said is Progress.ELSEWHERE and not rule.costs}
    assert waited_for == {Failure.UNREACHED, Failure.DRAINS, Failure.STOPPED, Failure.FULL}
    assert {key for key, rule in RULES.items() if rule.asked_again} == {(Failure.FULL, Progress.ELSEWHERE)}


def test_a_request_ends_where_any_worker_would_fail_it_or_its_client_has_waited_already() -> None:
    anywhere = {Failure.KV_LOST, Failure.MEDIA_MISSING, Failure.FAULT}
    waited = {(Failure.SILENT, Progress.HERE), (Failure.SLOW, Progress.HERE)}
    ends = {key for key, rule in RULES.items() if not rule.goes_on}
    assert ends == waited | {(failure, said) for failure in anywhere for said in Progress}


def begun() -> RequestState:
    state = RequestState(Sampling(max_tokens=100), 10.0)
    state.handle(Begin())
    return state


def said_elsewhere(state: RequestState) -> RequestState:
    state.received([TokenDelta([5])], decoded=False)
    return state


def said_here(state: RequestState) -> RequestState:
    state.received([TokenDelta([5])], decoded=True)
    return state


def failed(state: RequestState, worker: str, error: TriptychError, now: float = 0.0) -> TriptychError | None:
    """What the client gets. A worker that has no room is asked again only after a pause."""
    decision = state.handle(Failed(worker, error, now))
    if isinstance(decision, Wait):
        state.handle(TimePassed(now, frozenset({worker})))
    return decision.error if isinstance(decision, GiveUp) else None


# (what has been said, error, attempts it takes until the client gets an error; None: it never does)
ENDS = [
    ("nothing", UNREACHED, None),
    ("nothing", DRAINS, None),
    ("nothing", STOPPED, None),
    ("nothing", LOST, MAX_ATTEMPTS),
    ("nothing", FULL, MAX_ATTEMPTS),
    ("nothing", SILENT, 2),
    ("nothing", SLOW, 2),
    ("nothing", BadRequest("no"), 1),
    ("elsewhere", UNREACHED, None),
    ("elsewhere", DRAINS, None),
    ("elsewhere", STOPPED, None),
    ("elsewhere", FULL, None),
    ("elsewhere", LOST, MAX_ATTEMPTS),
    ("elsewhere", SILENT, 2),
    ("elsewhere", SLOW, 2),
    ("here", STOPPED, None),
    ("here", LOST, MAX_ATTEMPTS + 1),
    ("here", SILENT, 1),
    ("here", SLOW, 1),
    ("here", KvLost("unread"), 1),
]


@pytest.mark.parametrize(("said", "error", "ends"), ENDS, ids=lambda one: str(one))
def test_how_many_workers_may_fail_a_request_so(said: str, error: TriptychError, ends: int | None) -> None:
    one = {"nothing": lambda it: it, "elsewhere": said_elsewhere, "here": said_here}[said](begun())
    for number in range(1, 20):
        told = failed(one, f"w{number}", error)
        if told is not None:
            assert number == ends, told
            assert not isinstance(told, WorkerUnreached | WorkerStopped), "that is between workers"
            return
        assert f"w{number}" in one.tried, "nobody is asked twice in a row"
    assert ends is None


def test_nothing_is_free_for_ever() -> None:
    """In number, and in time: then each costs an attempt."""
    one = begun()
    told = [failed(one, f"w{number}", UNREACHED) for number in range(MAX_FREE + MAX_ATTEMPTS)]
    assert [error is None for error in told] == [True] * (MAX_FREE + MAX_ATTEMPTS - 1) + [False]
    one = begun()
    times = [0.0, FREE_S, *(FREE_S + 0.1 for _ in range(MAX_ATTEMPTS))]
    told = [failed(one, f"w{now}{number}", UNREACHED, now) for number, now in enumerate(times)]
    assert [error is None for error in told] == [True] * (len(times) - 1) + [False]
    moves = FreeRetries()
    assert moves.allows(100.0)
    assert moves.allows(100.0 + FREE_S)
    assert not moves.allows(100.1 + FREE_S)


def test_an_avoided_worker_comes_back_later_each_time_until_it_answers() -> None:
    excluded, now = ExcludedWorkers(), 100.0
    for for_s in (6.0, 12.0, 24.0, 48.0, MAX_EXCLUDED_S, MAX_EXCLUDED_S):
        excluded.add("w", DISCOVERY_S, now)
        excluded.add("w", 1.0, now)
        assert excluded.at(now + for_s - 0.1) == {"w"}
        assert excluded.at(now + for_s) == set(), "the time is over"
        now += for_s + 0.1
        assert excluded.at(now) == set()
    excluded.add("w", DISCOVERY_S, now)
    excluded.answered("w", now)
    assert excluded.at(now) == {"w"}, "that of a request from before says nothing of it now"
    now += MAX_EXCLUDED_S + 0.1
    excluded.answered("w", now)
    excluded.add("w", DISCOVERY_S, now)
    assert excluded.at(now + 6.1) == set()
    excluded.add("v", DISCOVERY_S, now)
    excluded.forget("v")
    excluded.add("x", 0.0, now)
    assert len(excluded) == 1
    assert excluded.at(now) == {"w"}


def test_discovery_has_its_say_before_a_worker_is_asked_again() -> None:
    from triptych.planes.discovery import local

    assert local.USUAL.starved_s + local.USUAL.scan_s < rules.DISCOVERY_S
