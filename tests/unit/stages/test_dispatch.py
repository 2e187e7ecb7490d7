"""Carrying out plans, on a request plane of this test's own."""

import asyncio

import msgspec
import pytest
from msgspec.structs import replace

from support.instances import instance
from triptych.config.router import RouterConfig
from triptych.contracts.answer import TokenDelta
from triptych.contracts.errors import BadRequest, DeadlineExceeded, TooManyRequests, Unavailable, WorkerLost
from triptych.contracts.kv_events import Load
from triptych.contracts.media import Picture
from triptych.contracts.request import GenerateRequest, Sampling
from triptych.contracts.tokens import TokenIds, dec_hook
from triptych.kv.prompt_keys import prompt_keys
from triptych.router.routing import PromptKeys, Routing, RoutingHint
from triptych.stages import planner
from triptych.stages.dispatch import Dispatcher
from triptych.stages.isolation import Isolation
from triptych.stages.request_state import rules
from triptych.stages.request_state.rules import MAX_ATTEMPTS, MAX_RESUMES
from triptych.stages.suspects import Suspects

REQUEST = GenerateRequest(id="r", model="m", token_ids=TokenIds([1]), sampling=Sampling(max_tokens=100))
PENALISED = replace(REQUEST, sampling=Sampling(max_tokens=100, presence_penalty=0.5))


class Plane:
    """Peers by port; each is a list of what they say: deltas' token ids, deltas, errors, or ``hang``."""

    def __init__(self, request=REQUEST, /, **says):
        self.request = request
        self.says = says
        self.called = []
        self.generated_ids = []
        self.left = 0
        self.silent = set()
        """Names of those whose sign of life is overdue."""

    def on_lost(self, told):
        """Its connections never break: each call says by itself what became of it."""

    def is_silent(self, peer):
        return f"w{peer.port}" in self.silent

    def call(self, peer, endpoint, payload, *, silence_s):
        name = f"w{peer.port}"
        self.called.append(name)
        received = msgspec.msgpack.decode(payload, type=GenerateRequest, dec_hook=dec_hook)
        assert replace(received, frontend_id="", generated_ids=[]) == self.request
        self.generated_ids.append(received.generated_ids)
        return Call(self, self.says[name])


class Call:
    def __init__(self, plane, says):
        self.plane, self.says = plane, iter(says)
        self.taken = False

    async def __aenter__(self):
        self.taken = True
        return self

    async def __aexit__(self, *_):
        self.plane.left += 1

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        word = next(self.says, None)
        if word is None:
            raise StopAsyncIteration
        if word == "hang":
            await asyncio.Event().wait()
        if isinstance(word, Exception):
            raise word
        return [msgspec.msgpack.encode(word if isinstance(word, TokenDelta) else TokenDelta([word]))]


async def outcome(alive=None, request=REQUEST, quarantine_s=600.0, **says):
    """(tokens, error, workers called) of one request."""
    plane = Plane(request, **says)
    isolation = Isolation(Suspects(quarantine_s, 10))
    dispatcher = Dispatcher(plane, 1.0, resume_timeout_s=0.0, isolation=isolation)
    fleet = [instance(name, port=int(name[1:])) for name in (says if alive is None else alive)]
    tokens, error = [], None
    try:
        async for deltas in dispatcher.run(request, lambda: fleet, lambda plan: None):
            tokens.extend(token for delta in deltas for token in delta.token_ids)
    except Exception as caught:
        error = caught
    assert all(dispatcher.load(one.id) == 0 for one in fleet), "whatever happened, the account is at zero"
    assert plane.left == len(plane.called), "every call was left"
    return tokens, error, plane.called


LOST, DRAINS = WorkerLost("gone"), Unavailable("drains", code="worker_draining")
FULL = TooManyRequests("full")


@pytest.mark.parametrize("first", [LOST, DRAINS, FULL], ids=["lost", "drains", "full"])
async def test_before_the_first_token_another_is_tried(first):
    assert await outcome(w1=[first], w2=[7, 8]) == ([7, 8], None, ["w1", "w2"])


@pytest.mark.parametrize("error", [LOST, DRAINS, FULL], ids=["lost", "drains", "full"])
async def test_after_the_first_token_another_goes_on(error):
    assert await outcome(w1=[7, 8, error], w2=[9]) == ([7, 8, 9], None, ["w1", "w2"])


async def test_a_resumed_answer_gets_all_earlier_tokens_and_counts_its_prompt_once():
    plane = Plane(
        w1=[TokenDelta([4, 5], prompt_tokens=9, cached_tokens=2), 6, LOST],
        w2=[TokenDelta([7], prompt_tokens=9, cached_tokens=8), LOST],
        w3=[TokenDelta([8], "stop", prompt_tokens=9)],
    )
    dispatcher = Dispatcher(plane, 1.0)
    fleet = [instance(name, port=int(name[1:])) for name in plane.says]
    batches = [batch async for batch in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None)]
    deltas = [delta for batch in batches for delta in batch]
    assert plane.generated_ids == [[], [4, 5, 6], [4, 5, 6, 7]]
    assert [delta.token_ids for delta in deltas] == [[4, 5], [6], [7], [8]]
    assert [(delta.prompt_tokens, delta.cached_tokens) for delta in deltas] == [(9, 2), (0, 0), (0, 0), (0, 0)]
    assert deltas[-1].finish_reason == "stop"
    assert next(one.value for one in dispatcher.metrics() if one.name == "triptych_requests_resumed_total") == 2


async def test_an_answer_that_only_its_own_engine_can_continue_ends():
    assert await outcome(request=PENALISED, w1=[7, LOST], w2=[9]) == ([7], LOST, ["w1"])
    assert await outcome(request=PENALISED, w1=[LOST], w2=[9]) == ([9], None, ["w1", "w2"])


async def test_an_answer_that_had_all_its_tokens_ends_without_another_call():
    short = replace(REQUEST, sampling=Sampling(max_tokens=2))
    plane = Plane(short, w1=[7, 8, LOST], w2=[9])
    dispatcher = Dispatcher(plane, 1.0)
    fleet = [instance("w1", port=1), instance("w2", port=2)]
    assert [d async for batch in dispatcher.run(short, lambda: fleet, lambda plan: None) for d in batch] == [
        TokenDelta([7]),
        TokenDelta([8]),
        TokenDelta([], "length"),
    ]
    assert plane.called == ["w1"]


async def test_a_loss_after_the_end_is_none():
    assert await outcome(w1=[TokenDelta([7], "stop"), LOST], w2=[9]) == ([7], None, ["w1"])


async def test_going_on_is_bounded():
    tokens, error, called = await outcome(**{f"w{n}": [n, LOST] for n in range(1, 9)})
    assert len(called) == len(set(called)) == len(tokens) == MAX_RESUMES + 1
    assert error is LOST


async def test_tries_to_go_on_are_bounded():
    tokens, error, called = await outcome(quarantine_s=0, w1=[7, LOST], **{f"w{n}": [LOST] for n in range(2, 9)})
    assert (tokens, error, len(called)) == ([7], LOST, 1 + MAX_ATTEMPTS)


async def test_a_worker_to_go_on_is_waited_for():
    """One refuses, then has room; a new one comes; the lost one, that is there still, is asked when nobody else is."""
    for comes in (True, False):
        plane = Plane(w1=[7, LOST], w2=[8])
        dispatcher = Dispatcher(plane, 1.0, resume_timeout_s=5.0)
        fleet = [instance("w1", port=1)]

        async def main(plane=plane, dispatcher=dispatcher, fleet=fleet, comes=comes):
            tokens = []
            async for batch in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None):
                tokens += [token for delta in batch for token in delta.token_ids]
                loop = asyncio.get_running_loop()
                if comes:
                    loop.call_later(0.02, fleet.append, instance("w2", port=2))
                else:
                    plane.says["w1"] = [8]
            return tokens

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rules, "AFTER_LOSS_S", 0.1)
            assert await main() == [7, 8]
        assert plane.called == ["w1", "w2" if comes else "w1"]


async def test_a_full_worker_is_asked_again_until_it_has_room():
    plane = Plane(w1=[7, LOST], w2=[FULL])
    dispatcher = Dispatcher(plane, 1.0, resume_timeout_s=5.0)
    fleet = [instance("w1", port=1), instance("w2", port=2)]

    def alive():
        if plane.called.count("w2") == 4:
            plane.says["w2"] = [8]
        return fleet

    batches = [batch async for batch in dispatcher.run(REQUEST, alive, lambda plan: None)]
    assert [token for batch in batches for delta in batch for token in delta.token_ids] == [7, 8]
    assert plane.called == ["w1", *["w2"] * 5]


async def test_waiting_has_an_end_and_can_be_cancelled():
    plane = Plane(w1=[7, LOST])
    dispatcher = Dispatcher(plane, 1.0, resume_timeout_s=0.2)
    fleet = [instance("w1", port=1)]

    async def ask():
        return [d async for d in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None)]

    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(WorkerLost) as caught:
        await ask()
    assert caught.value is LOST
    assert loop.time() - begun > 0.1
    waiting = asyncio.create_task(ask())
    while len(plane.called) < 2:
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert dispatcher.in_flight == 0


@pytest.mark.parametrize("error", [BadRequest("no"), DeadlineExceeded("silent")])
async def test_an_error_that_another_worker_would_repeat_is_not_tried_there(error):
    assert await outcome(w1=[error], w2=[9]) == ([], error, ["w1"])


async def test_tries_are_bounded():
    tokens, error, called = await outcome(quarantine_s=0, **{f"w{n}": [LOST] for n in range(1, 8)})
    assert len(called) == len(set(called)) == MAX_ATTEMPTS
    assert isinstance(error, WorkerLost)
    assert tokens == []


async def test_everyone_was_tried():
    _, error, called = await outcome(w1=[FULL], w2=[LOST])
    assert called == ["w1", "w2"]
    assert error is LOST, "the last one's own words"
    _, error, _ = await outcome(w1=[FULL])
    assert error is FULL, "a fleet of one that is full is full, not gone"


async def test_a_worker_that_broke_off_is_asked_again_when_it_is_the_only_one():
    plane = Plane(w1=[LOST])
    dispatcher = Dispatcher(plane, 1.0)

    async def ask():
        return [d async for d in dispatcher.run(REQUEST, lambda: [instance("w1", port=1)], lambda plan: None)]

    for _ in range(2):
        with pytest.raises(WorkerLost):
            await ask()
    assert plane.called == ["w1", "w1"]


@pytest.mark.parametrize("error", [LOST, DRAINS, FULL], ids=["lost", "drains", "full"])
async def test_a_worker_that_the_client_named_speaks_for_itself(error):
    """No other may take the request: what is wrong is told, and not that there is nobody of that name."""
    plane = Plane(w1=[error], w2=[5])
    dispatcher = Dispatcher(plane, 1.0, routing=Routing(RouterConfig(router_policy="direct")))
    fleet = [instance("w1", port=1), instance("w2", port=2)]
    prompt = PromptKeys(prompt_keys(REQUEST.token_ids))

    async def ask(name):
        prompt.hint = RoutingHint(instance=name)
        return [d async for d in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None, prompt)]

    for _ in range(2):  # the second time it is known to have broken off
        with pytest.raises(type(error)) as caught:
            await ask("w1")
        assert caught.value is error
    with pytest.raises(BadRequest, match="names 'w3'; workers that can take this request now: w1, w2"):
        await ask("w3")
    assert plane.called == ["w1", "w1"]


@pytest.mark.parametrize("spans", [{"w1": "epd", "w2": "epd"}, {"w1": "e", "w2": "e", "w3": "pd"}])
@pytest.mark.parametrize(("silent", "taken"), [({"w1"}, {"w2"}), ({"w2"}, {"w1"}), ({"w1", "w2"}, {"w1", "w2"})])
async def test_a_silent_worker_is_asked_when_no_other_is_left(spans, silent, taken):
    plane, plans = Plane(), []
    plane.silent = silent
    fleet = [instance(name, span, port=int(name[1:])) for name, span in spans.items()]
    request = replace(REQUEST, media=[Picture(content_hash="red", format="PNG", data=b"")])

    def on_plan(chosen):
        plans.append(chosen)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        async for _ in Dispatcher(plane, 1.0).run(request, lambda: fleet, on_plan):
            pass
    assert plans[0].steps[0].instance.id in taken


async def test_a_named_worker_that_is_known_to_be_full_says_so():
    plane = Plane(w1=[FULL], w2=[5])
    routing = Routing(RouterConfig(router_policy="direct"))
    dispatcher = Dispatcher(plane, 1.0, routing=routing)
    fleet = [instance("w1", port=1, max_in_flight=1), instance("w2", port=2)]
    prompt = PromptKeys(prompt_keys(REQUEST.token_ids))
    prompt.hint = RoutingHint(instance="w1")
    routing.report("w1", Load(requests=1))
    with pytest.raises(TooManyRequests):
        async for _ in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None, prompt):
            pass


async def test_nobody_is_alive():
    _, error, called = await outcome(alive=[])
    assert (error.code, called) == ("no_worker", [])


async def test_a_worker_that_broke_off_is_excluded_for_a_moment(monkeypatch):
    plane = Plane(w1=[LOST], w2=[5])
    dispatcher = Dispatcher(plane, 1.0)
    fleet = [instance("w1", port=1), instance("w2", port=2)]
    now = [100.0]
    monkeypatch.setattr(planner.time, "monotonic", lambda: now[0])

    async def ask():
        return [d async for d in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None)]

    for _ in range(3):
        await ask()
    assert plane.called == ["w1", "w2", "w2", "w2"]
    now[0] += rules.AFTER_LOSS_S + 0.1
    await ask()
    assert plane.called[4:] == ["w1", "w2"], "then it gets another chance"


async def test_the_least_loaded_is_picked_and_leaving_frees_it():
    plane = Plane(w1=["hang"], w2=[5])
    dispatcher = Dispatcher(plane, 1.0)
    fleet = [instance("w1", port=1), instance("w2", port=2)]
    plans = []

    async def ask():
        return [d async for d in dispatcher.run(REQUEST, lambda: fleet, plans.append)]

    hanging = asyncio.create_task(ask())
    await asyncio.sleep(0)
    assert dispatcher.load("w1") == 1
    await ask()
    assert plane.called == ["w1", "w2"]
    assert [plan.steps[0].instance.id for plan in plans] == ["w1", "w2"]
    hanging.cancel()
    await asyncio.wait([hanging])
    assert dispatcher.load("w1") == dispatcher.load("w2") == 0
    assert plane.left == 2


async def test_closing_the_stream_early_leaves_the_call():
    plane = Plane(w1=[1, 2, 3, "hang"])
    dispatcher = Dispatcher(plane, 1.0)
    stream = dispatcher.run(REQUEST, lambda: [instance("w1", port=1)], lambda plan: None)
    await anext(stream)
    assert dispatcher.load("w1") == 1
    await stream.aclose()
    assert (dispatcher.load("w1"), plane.left) == (0, 1)


async def test_a_worker_that_appears_meanwhile_is_tried():
    plane = Plane(w1=[LOST], w2=[4])
    dispatcher = Dispatcher(plane, 1.0)
    fleet = [instance("w1", port=1)]

    def alive():
        if plane.called:
            return [*fleet, instance("w2", port=2)]
        return fleet

    assert [d async for batch in dispatcher.run(REQUEST, alive, lambda plan: None) for d in batch] == [TokenDelta([4])]
