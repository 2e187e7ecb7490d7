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
from triptych.contracts.request import GenerateRequest, Sampling
from triptych.kv.block_hash import named
from triptych.router.routing import Prompt
from triptych.stages import retry
from triptych.stages.course import Course, Patience
from triptych.stages.retry import (
    DISCOVERY_S,
    FELLS,
    FREE_S,
    MAX_ATTEMPTS,
    MAX_FREE,
    MAX_LEFT_OUT_S,
    RULES,
    Event,
    FreeMoves,
    LeftOut,
    Said,
    event_of,
)


def silent(*, speaks: bool) -> WorkerSilent:
    error = WorkerSilent("silent")
    error.speaks = speaks
    return error


UNREACHED, LOST, STOPPED = WorkerUnreached("unreached"), WorkerLost("lost"), WorkerStopped("stopped")
DRAINS, FULL = Unavailable("drains", code="worker_draining"), TooManyRequests("full")
SILENT, SLOW = silent(speaks=False), silent(speaks=True)

EVENTS: list[tuple[TriptychError, Event]] = [
    (UNREACHED, Event.UNREACHED),
    (LOST, Event.LOST),
    (STOPPED, Event.STOPPED),
    (SILENT, Event.SILENT),
    (SLOW, Event.SLOW),
    (DRAINS, Event.DRAINS),
    (FULL, Event.FULL),
    (Unavailable("no room", code="arena_full"), Event.FULL),
    (KvLost("unread"), Event.KV_LOST),
    (MediaMissing("missing"), Event.MEDIA_MISSING),
    (BadRequest("no"), Event.FAULT),
    (TriptychError("broken"), Event.FAULT),
    (DeadlineExceeded("the medium's host"), Event.FAULT),
]


@pytest.mark.parametrize(("error", "event"), EVENTS, ids=lambda one: str(one))
def test_what_an_error_tells(error: TriptychError, event: Event) -> None:
    assert event_of(error) is event


def test_there_is_a_rule_for_all_that_can_happen() -> None:
    never = {(event, Said.HERE) for event in (Event.UNREACHED, Event.DRAINS)}
    assert {(event, said) for event in Event for said in Said} - never == set(RULES)
    assert {Event.LOST, Event.SILENT} == FELLS


def test_only_what_a_worker_took_and_did_not_answer_is_held_against_a_request() -> None:
    suspects = {key for key, rule in RULES.items() if rule.suspect}
    assert suspects == {
        (event, said) for event in (Event.LOST, Event.SILENT) for said in (Said.NOTHING, Said.ELSEWHERE)
    }
    free = {event for (event, said), rule in RULES.items() if said is Said.NOTHING and not rule.costs}
    assert free == {Event.UNREACHED, Event.DRAINS, Event.STOPPED}


def course() -> Course:
    request = GenerateRequest(id="r", model="m", token_ids=[1], sampling=Sampling(max_tokens=100))
    return Course(request, Prompt(named([1])), None, Patience(10.0))  # type: ignore[arg-type]


def said_elsewhere(one: Course) -> Course:
    one.heard([TokenDelta([5])])
    return one


def said_here(one: Course) -> Course:
    one.streaming = True
    return said_elsewhere(one)


def failed(one: Course, worker: str, error: TriptychError, now: float = 0.0) -> TriptychError | None:
    """What the client gets."""
    try:
        one.failed(worker, error, None, now)
    except TriptychError as told:
        return told
    return None


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
    one = {"nothing": lambda it: it, "elsewhere": said_elsewhere, "here": said_here}[said](course())
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
    one = course()
    told = [failed(one, f"w{number}", UNREACHED) for number in range(MAX_FREE + MAX_ATTEMPTS)]
    assert [error is None for error in told] == [True] * (MAX_FREE + MAX_ATTEMPTS - 1) + [False]
    one = course()
    times = [0.0, FREE_S, *(FREE_S + 0.1 for _ in range(MAX_ATTEMPTS))]
    told = [failed(one, f"w{now}{number}", UNREACHED, now) for number, now in enumerate(times)]
    assert [error is None for error in told] == [True] * (len(times) - 1) + [False]
    moves = FreeMoves()
    assert moves.allows(100.0)
    assert moves.allows(100.0 + FREE_S)
    assert not moves.allows(100.1 + FREE_S)


def test_who_is_left_out_comes_back_later_each_time_until_it_is_heard() -> None:
    left_out, now = LeftOut(), 100.0
    for for_s in (6.0, 12.0, 24.0, 48.0, MAX_LEFT_OUT_S, MAX_LEFT_OUT_S):
        left_out.add("w", DISCOVERY_S, now)
        left_out.add("w", 1.0, now)
        assert left_out.at(now + for_s - 0.1) == {"w"}
        now += for_s + 0.1
        assert left_out.at(now) == set()
    left_out.add("w", DISCOVERY_S, now)
    left_out.heard("w", now)
    assert left_out.at(now) == {"w"}, "that of a request from before says nothing of it now"
    now += MAX_LEFT_OUT_S + 0.1
    left_out.heard("w", now)
    left_out.add("w", DISCOVERY_S, now)
    assert left_out.at(now + 6.1) == set()
    left_out.add("v", DISCOVERY_S, now)
    left_out.forget("v")
    left_out.add("x", 0.0, now)
    assert left_out.at(now) == {"w"}


def test_discovery_has_its_say_before_a_worker_is_asked_again() -> None:
    from triptych.planes.discovery import local

    assert local.STARVED_S + local.SCAN_S < retry.DISCOVERY_S
