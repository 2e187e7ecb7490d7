"""What becomes of one request: who may be tried next, and when it is over."""

from __future__ import annotations

import pytest

from triptych.contracts.answer import TokenDelta
from triptych.contracts.errors import BadRequest, KvLost, TooManyRequests, Unavailable, WorkerLost
from triptych.contracts.request import GenerateRequest, Guided, Sampling
from triptych.kv.block_hash import named
from triptych.router.routing import Prompt
from triptych.stages.course import FIRST_PAUSE_S, LONGEST_PAUSE_S, Course, Patience
from triptych.stages.retry import MAX_ATTEMPTS, MAX_RESUMES

LOST, FULL, UNREAD = WorkerLost("gone"), TooManyRequests("full"), KvLost("unread")


def course(limit_s: float = 10.0, **sampling: object) -> Course:
    fields = {"max_tokens": 100, **sampling}
    request = GenerateRequest(id="r", model="m", token_ids=[1], sampling=Sampling(**fields))
    return Course(request, Prompt(named([1])), None, Patience(limit_s))


def streaming(one: Course, *tokens: int) -> Course:
    one.streaming = True
    one.heard([TokenDelta([token]) for token in tokens])
    one.goes_on()
    return one


def test_pauses_grow_up_to_a_limit_and_start_anew() -> None:
    patience, now, pauses = Patience(3.0), 100.0, []
    assert patience.pause(now) is None, "nothing has failed"
    patience.begin(now)
    while (pause_s := patience.pause(now)) is not None:
        pauses.append(pause_s)
        now += pause_s
        patience.begin(now)
    assert now == pytest.approx(103.0), "what fails meanwhile gives no more time"
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert max(pauses) == LONGEST_PAUSE_S
    patience.end()
    patience.begin(now)
    assert patience.pause(now) == FIRST_PAUSE_S


def test_a_kv_cache_that_is_lost_midway_is_made_once_more() -> None:
    one = streaming(course(), 5)
    one.failed("d", UNREAD, "p", 0.0)
    assert (one.unread, one.tried, one.resuming) == ({"p"}, {}, True)
    with pytest.raises(Unavailable) as told:
        one.failed("d", UNREAD, "q", 0.0)
    assert told.value.code == "kv_lost"


def test_a_prefills_token_alone_is_no_progress() -> None:
    """It would make the wait begin anew each time that no worker takes the decode."""
    one = streaming(course(), 5)
    one.failed("d", LOST, "p", 0.0)
    one.heard([TokenDelta([6])])
    assert not one.goes_on()
    assert one.resuming
    one.streaming = True
    assert one.goes_on()
    assert not one.resuming


def test_who_goes_on_starts_the_count_of_tries_anew() -> None:
    one = course()
    for turn in range(MAX_RESUMES):
        streaming(one, turn).failed(f"a{turn}", LOST, None, 0.0)
        for number in range(MAX_ATTEMPTS - 1):
            one.failed(f"b{turn}{number}", LOST, None, 0.0)
        assert len(one.tried) == MAX_ATTEMPTS
    with pytest.raises(WorkerLost):
        streaming(one, 9).failed("last", LOST, None, 0.0)


def test_who_refuses_is_asked_again_after_a_pause_but_who_is_gone_is_not() -> None:
    one = streaming(course(), 5)
    one.failed("a", LOST, None, 0.0)
    for number in range(2 * MAX_ATTEMPTS):
        one.failed("b", FULL, None, float(number))
        assert one.refused is FULL
        one.ask_again({"a"})
        assert (one.refused, one.tried) == (None, {"a": LOST})


def test_a_dead_worker_that_discovery_shows_still_counts_once() -> None:
    one = streaming(course(), 5)
    for now in range(2 * MAX_ATTEMPTS):
        one.failed("a", LOST, None, float(now))
        one.ask_again(())
        assert not one.tried


def test_refusals_before_the_first_token_are_tries() -> None:
    one = course()
    for number in range(MAX_ATTEMPTS - 1):
        one.failed(f"a{number}", FULL, None, 0.0)
        assert one.refused is None
    with pytest.raises(TooManyRequests):
        one.failed("a", FULL, None, 0.0)


def test_what_would_be_refused_elsewhere_too_is_told() -> None:
    with pytest.raises(BadRequest):
        streaming(course(), 5).failed("a", BadRequest("no"), None, 0.0)


@pytest.mark.parametrize(
    "field", [{"presence_penalty": 1.0}, {"frequency_penalty": -1.0}, {"guided": Guided("json_object")}]
)
def test_what_depends_on_the_answers_own_tokens_does_not_go_on(field: dict[str, object]) -> None:
    course(**field).failed("a", LOST, None, 0.0)
    with pytest.raises(WorkerLost):
        streaming(course(**field), 5).failed("a", LOST, None, 0.0)


def test_complete() -> None:
    one = streaming(course(max_tokens=2), 5)
    assert not one.complete
    one.heard([TokenDelta([6])])
    assert (one.complete, one.finished) == (True, False)
    one.failed("a", LOST, None, 0.0)
    assert not one.resuming, "nothing is left to say"
