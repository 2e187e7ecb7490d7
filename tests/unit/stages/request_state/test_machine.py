"""The life of one generation: every event in every phase, who may be tried next, and when it is over."""

from __future__ import annotations

import itertools

import pytest

from triptych.contracts.answer import TokenDelta
from triptych.contracts.errors import BadRequest, KvLost, TooManyRequests, Unavailable, WorkerLost, WorkerSilent
from triptych.contracts.request import Guided, Sampling
from triptych.stages.request_state.events import (
    Begin,
    Decision,
    Ended,
    Event,
    Failed,
    Finish,
    GiveUp,
    GoOn,
    InstancesChanged,
    NoPlan,
    Retry,
    Send,
    Stay,
    TimePassed,
    Wait,
)
from triptych.stages.request_state.machine import POSSIBLE, Impossible, Phase, RequestState
from triptych.stages.request_state.patience import Patience
from triptych.stages.request_state.rules import FIRST_PAUSE_S, MAX_ATTEMPTS, MAX_PAUSE_S, MAX_RESUMES

LOST, FULL, UNREAD, SILENT = WorkerLost("gone"), TooManyRequests("full"), KvLost("unread"), WorkerSilent("silent")
NOBODY, NO_SUCH = Unavailable("nobody", code="no_worker"), BadRequest("no instance of that name")
CLOSING = (TokenDelta([], finish_reason="length"),)


def begun(patience_s: float = 10.0, **sampling: object) -> RequestState:
    state = RequestState(Sampling(**{"max_tokens": 100, **sampling}), patience_s)  # type: ignore[arg-type]
    assert type(state.handle(Begin())) is Send
    return state


def prefilled(state: RequestState, token: int = 5) -> RequestState:
    state.received([TokenDelta([token])], decoded=False)
    return state


def streaming(state: RequestState, *tokens: int) -> RequestState:
    state.received([TokenDelta([token]) for token in tokens], decoded=True)
    return state


def waiting() -> RequestState:
    state = streaming(begun(), 5)
    state.handle(Failed("a", LOST, 0.0))
    assert isinstance(state.handle(NoPlan(NOBODY, 0.0)), Wait)
    return state


def over() -> RequestState:
    state = begun()
    state.handle(Ended())
    return state


def new() -> RequestState:
    return RequestState(Sampling(max_tokens=100), 10.0)


IN_PHASE = {
    Phase.NEW: new,
    Phase.ATTEMPTING: begun,
    Phase.STREAMING: lambda: streaming(begun(), 5),
    Phase.WAITING: waiting,
    Phase.OVER: over,
}
EVENTS: list[Event] = [
    Begin(),
    NoPlan(NOBODY, 0.0),
    Failed("a", LOST, 0.0),
    Ended(),
    TimePassed(1.0),
    InstancesChanged(),
]
DECIDED: dict[tuple[Phase, type], type] = {
    (Phase.NEW, Begin): Send,
    (Phase.NEW, InstancesChanged): Stay,
    (Phase.ATTEMPTING, NoPlan): GiveUp,
    (Phase.ATTEMPTING, Failed): Retry,
    (Phase.ATTEMPTING, Ended): Finish,
    (Phase.ATTEMPTING, InstancesChanged): Stay,
    (Phase.STREAMING, Failed): GoOn,
    (Phase.STREAMING, Ended): Finish,
    (Phase.STREAMING, InstancesChanged): Stay,
    (Phase.WAITING, TimePassed): GoOn,
    (Phase.WAITING, InstancesChanged): GoOn,
    (Phase.OVER, InstancesChanged): Stay,
}
"""Whatever is not here cannot happen."""
AFTER = {Send: Phase.ATTEMPTING, Retry: Phase.ATTEMPTING, GoOn: Phase.ATTEMPTING, Wait: Phase.WAITING}


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, EVENTS)), ids=lambda value: str(value)[:24])
def test_every_event_in_every_phase(phase: Phase, event: Event) -> None:
    state = IN_PHASE[phase]()
    assert state.phase is phase
    decided = DECIDED.get((phase, type(event)))
    assert (phase in POSSIBLE[type(event)]) == (decided is not None)
    if decided is None:
        with pytest.raises(Impossible, match=phase.value):
            state.handle(event)
        assert state.phase is phase
        return
    assert type(state.handle(event)) is decided
    assert state.phase is (phase if decided is Stay else AFTER.get(decided, Phase.OVER))


KV_LOST_AT_D = Failed("d", UNREAD, 0.0, giver_id="p")


@pytest.mark.parametrize(
    ("state", "event", "decision"),
    [
        # Before the first token.
        (begun(), Failed("a", LOST, 0.0), Retry()),
        (begun(), Failed("a", FULL, 0.0), Retry()),
        (begun(), Failed("a", NO_SUCH, 0.0), GiveUp(NO_SUCH)),
        (begun(), Failed("a", SILENT, 0.0), Retry()),
        (begun(), Failed("a", BadRequest("x"), 0.0, has_more=True), Retry()),
        (begun(), KV_LOST_AT_D, Retry()),
        (begun(), NoPlan(NOBODY, 0.0), GiveUp(NOBODY)),
        (begun(), NoPlan(NO_SUCH, 0.0), GiveUp(NO_SUCH)),
        # After a prefill's token.
        (prefilled(begun()), Failed("d", LOST, 0.0), GoOn()),
        (prefilled(begun()), KV_LOST_AT_D, GoOn()),
        (prefilled(begun()), Failed("d", FULL, 0.0), Wait(FIRST_PAUSE_S)),
        (prefilled(begun(0.02)), Failed("d", FULL, 0.0), Wait(0.02)),
        (prefilled(begun(0.0)), Failed("d", FULL, 0.0), GiveUp(FULL)),
        # After tokens of the worker that decodes.
        (streaming(begun(), 5), Failed("d", LOST, 0.0), GoOn()),
        (streaming(begun(), 5), Failed("d", SILENT, 0.0), GiveUp(SILENT)),
        (streaming(begun(presence_penalty=1.0), 5), Failed("d", LOST, 0.0), GiveUp(LOST)),
        (waiting(), TimePassed(0.1), GoOn()),
        # At the end.
        (streaming(begun(max_tokens=1), 5), Failed("d", LOST, 0.0), Finish(CLOSING)),
        (streaming(begun(), 5), Ended(), Finish()),
    ],
    ids=lambda value: None if isinstance(value, RequestState) else repr(value)[:60],
)
def test_what_follows(state: RequestState, event: Event, decision: Decision) -> None:
    assert state.handle(event) == decision


def test_a_last_delta_that_was_passed_on_is_the_end_whatever_the_worker_does_then() -> None:
    state = begun()
    state.received([TokenDelta([5], "stop")], decoded=True)
    assert state.handle(Failed("d", LOST, 0.0)) == Finish()


def test_deltas_are_told_as_parts_of_one_answer() -> None:
    state = begun()
    first, second = TokenDelta([5], prompt_tokens=9, cached_tokens=4), TokenDelta([6], prompt_tokens=9)
    assert state.received([first, TokenDelta([7])], decoded=False) == [first, TokenDelta([7])]
    assert state.received([second], decoded=True) == [TokenDelta([6])], "the prompt is counted once"
    assert state.generated == [5, 7, 6]


def test_without_a_plan_the_last_workers_own_error_is_told() -> None:
    state = begun()
    state.handle(Failed("a", KvLost("unread"), 0.0))
    state = begun()
    state.handle(Failed("a", FULL, 0.0))
    assert state.handle(NoPlan(NOBODY, 0.0)) == GiveUp(FULL)


def test_a_wait_has_an_end_and_a_change_of_instances_does_not_prolong_it() -> None:
    state = streaming(begun(1.0), 5)
    state.handle(Failed("a", LOST, 100.0))
    now, waits = 100.0, []
    while isinstance(decision := state.handle(NoPlan(NOBODY, now)), Wait):
        waits.append(decision.seconds)
        state.handle(InstancesChanged())
        half = decision.seconds / 2
        assert state.handle(NoPlan(NOBODY, now + half)) == Wait(pytest.approx(half)), "the rest of the pause"  # type: ignore[arg-type]
        now += decision.seconds
        state.handle(TimePassed(now))
    assert decision == GiveUp(LOST)
    assert sum(waits) == pytest.approx(1.0)
    assert waits[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]


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
    assert max(pauses) == MAX_PAUSE_S
    patience.end()
    patience.begin(now)
    assert patience.pause(now) == FIRST_PAUSE_S


def test_a_kv_cache_that_is_lost_midway_is_made_once_more() -> None:
    state = streaming(begun(), 5)
    assert state.handle(Failed("d", UNREAD, 0.0, giver_id="p")) == GoOn()
    assert (state.unread, state.tried, state.resuming) == ({"p"}, {}, True)
    told = state.handle(Failed("d", UNREAD, 0.0, giver_id="q"))
    assert isinstance(told, GiveUp)
    assert (type(told.error), told.error.code) == (Unavailable, "kv_lost")


def test_a_prefills_token_alone_is_no_progress() -> None:
    """It would make the wait begin anew each time that no worker takes the decode."""
    state = streaming(begun(), 5)
    state.handle(Failed("d", LOST, 0.0))
    prefilled(state, 6)
    assert (state.resuming, state.num_resumed) == (True, 0)
    streaming(state, 7)
    assert (state.resuming, state.num_resumed) == (False, 1)


def test_a_worker_that_goes_on_starts_the_count_of_attempts_anew() -> None:
    state = begun()
    for turn in range(MAX_RESUMES):
        assert streaming(state, turn).handle(Failed(f"a{turn}", LOST, 0.0)) == GoOn()
        for number in range(MAX_ATTEMPTS - 1):
            assert state.handle(Failed(f"b{turn}{number}", LOST, 0.0)) == GoOn()
        assert len(state.tried) == MAX_ATTEMPTS
    assert streaming(state, 9).handle(Failed("last", LOST, 0.0)) == GiveUp(LOST)


def test_a_worker_that_refuses_is_asked_again_after_a_pause_but_one_that_is_gone_is_not() -> None:
    state = streaming(begun(), 5)
    state.handle(Failed("a", LOST, 0.0))
    for number in range(2 * MAX_ATTEMPTS):
        assert isinstance(state.handle(Failed("b", FULL, float(number))), Wait)
        assert state.handle(TimePassed(float(number), frozenset({"a"}))) == GoOn()
        assert state.tried == {"a": LOST}


def test_a_dead_worker_that_discovery_shows_still_counts_once() -> None:
    state = streaming(begun(), 5)
    for now in range(2 * MAX_ATTEMPTS):
        assert state.handle(Failed("a", LOST, float(now))) == GoOn()
        assert isinstance(state.handle(NoPlan(NOBODY, float(now))), Wait)
        state.handle(TimePassed(float(now)))
        assert not state.tried


def test_refusals_before_the_first_token_are_attempts() -> None:
    state = begun()
    for number in range(MAX_ATTEMPTS - 1):
        assert state.handle(Failed(f"a{number}", FULL, 0.0)) == Retry()
    assert state.handle(Failed("a", FULL, 0.0)) == GiveUp(FULL)


def test_a_refusal_that_others_would_repeat_is_told() -> None:
    told = streaming(begun(), 5).handle(Failed("a", BadRequest("no"), 0.0))
    assert isinstance(told, GiveUp)
    assert isinstance(told.error, BadRequest)


@pytest.mark.parametrize(
    "field", [{"presence_penalty": 1.0}, {"frequency_penalty": -1.0}, {"guided": Guided("json_object")}]
)
def test_sampling_that_depends_on_earlier_tokens_does_not_go_on_elsewhere(field: dict[str, object]) -> None:
    assert begun(**field).handle(Failed("a", LOST, 0.0)) == Retry()
    assert streaming(begun(**field), 5).handle(Failed("a", LOST, 0.0)) == GiveUp(LOST)


def test_complete() -> None:
    state = streaming(begun(max_tokens=2), 5)
    assert not state.is_complete
    streaming(state, 6)
    assert (state.is_complete, state.finished) == (True, False)
    assert state.handle(Failed("a", LOST, 0.0)) == Finish(CLOSING)
    assert not state.resuming, "nothing is left to say"


def test_at_least_one_of_two_doubted_instances_is_excluded() -> None:
    state = begun()
    assert state.avoided({"x"}) == [{"x"}]
    assert state.handle(Failed("p", SILENT, 0.0, pair=("p", "d"))) == Retry()
    assert state.tried == {}
    assert state.avoided({"x"}) == [{"x", "p", "d"}, {"x", "p"}, {"x", "d"}]
    assert state.handle(Failed("q", SILENT, 0.0, pair=("q", "d"))) == GiveUp(SILENT), "once, as any silence"
    state = begun()
    state.handle(Failed("p", SILENT, 0.0, pair=("p", "d")))
    streaming(state, 5).handle(Failed("d", LOST, 0.0))
    assert state.avoided(()) == [{"d"}], "the answer went on meanwhile"


def test_each_time_an_answer_goes_on_its_patience_starts_anew() -> None:
    state = streaming(begun(patience_s=10.0), 5)
    for now in (0.0, 100.0):
        assert isinstance(state.handle(Failed("a", LOST, now)), GoOn)
        assert isinstance(state.handle(NoPlan(NOBODY, now + 9.0)), Wait)
        assert isinstance(state.handle(InstancesChanged()), GoOn)
        streaming(state, 6)


def test_each_time_an_answer_goes_on_a_lost_kv_cache_may_be_made_anew() -> None:
    state = begun()
    for token in (5, 6):
        assert type(state.handle(Failed("d", UNREAD, 0.0, giver_id="p"))) in (Retry, GoOn)
        assert state.unread == {"p"}
        streaming(state, token)
        assert isinstance(state.handle(Failed("d", LOST, 0.0)), GoOn)
        assert state.unread == set()
