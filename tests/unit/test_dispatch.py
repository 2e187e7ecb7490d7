"""Carrying out plans, on a request plane of this test's own."""

import asyncio

import msgspec
import pytest

from support.instances import instance
from support.loops import run
from triptych.config.router import RouterConfig
from triptych.contracts.errors import BadRequest, DeadlineExceeded, TooManyRequests, Unavailable, WorkerLost
from triptych.contracts.kv_events import Load
from triptych.contracts.request import GenerateRequest, Sampling, TokenDelta
from triptych.router.block_hash import named
from triptych.router.routing import Prompt, Routing, Wish
from triptych.stages import dispatch
from triptych.stages.dispatch import ATTEMPTS, Dispatcher

REQUEST = GenerateRequest(id="r", model="m", token_ids=[1], sampling=Sampling(max_tokens=1))


class Plane:
    """Peers by port; each is a list of what they say: deltas' token ids, errors, or ``hang``."""

    def __init__(self, **says):
        self.says = says
        self.called = []
        self.left = 0

    def call(self, peer, endpoint, payload, *, silence_s):
        name = f"w{peer.port}"
        self.called.append(name)
        received = msgspec.msgpack.decode(payload, type=GenerateRequest)
        assert msgspec.structs.replace(received, origin="") == REQUEST
        return Call(self, self.says[name])


class Call:
    def __init__(self, plane, says):
        self.plane, self.says = plane, iter(says)

    async def __aenter__(self):
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
        return [msgspec.msgpack.encode(TokenDelta([word]))]


def outcome(alive=None, **says):
    """(tokens, error, workers called) of one request."""
    plane = Plane(**says)
    dispatcher = Dispatcher(plane, 1.0)
    fleet = [instance(name, port=int(name[1:])) for name in (says if alive is None else alive)]
    tokens, error = [], None

    async def main():
        nonlocal error
        try:
            async for deltas in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None):
                tokens.extend(token for delta in deltas for token in delta.token_ids)
        except Exception as caught:
            error = caught

    run(main())
    assert all(dispatcher.load(one.id) == 0 for one in fleet), "whatever happened, the account is at zero"
    assert plane.left == len(plane.called), "every call was left"
    return tokens, error, plane.called


LOST, DRAINS = WorkerLost("gone"), Unavailable("drains", code="worker_draining")
FULL = TooManyRequests("full")


@pytest.mark.parametrize("first", [LOST, DRAINS, FULL], ids=["lost", "drains", "full"])
def test_before_the_first_token_another_is_tried(first):
    assert outcome(w1=[first], w2=[7, 8]) == ([7, 8], None, ["w1", "w2"])


@pytest.mark.parametrize("error", [LOST, DRAINS, FULL], ids=["lost", "drains", "full"])
def test_after_the_first_token_none_is(error):
    tokens, raised, called = outcome(w1=[7, error], w2=[9])
    assert (tokens, raised, called) == ([7], error, ["w1"])


@pytest.mark.parametrize("error", [BadRequest("no"), DeadlineExceeded("silent")])
def test_what_would_be_the_same_elsewhere_is_not_tried_there(error):
    assert outcome(w1=[error], w2=[9]) == ([], error, ["w1"])


def test_tries_are_bounded():
    tokens, error, called = outcome(**{f"w{n}": [LOST] for n in range(1, 8)})
    assert len(called) == len(set(called)) == ATTEMPTS
    assert isinstance(error, WorkerLost)
    assert tokens == []


def test_everyone_was_tried():
    _, error, called = outcome(w1=[FULL], w2=[LOST])
    assert called == ["w1", "w2"]
    assert error is LOST, "the last one's own words"
    _, error, _ = outcome(w1=[FULL])
    assert error is FULL, "a fleet of one that is full is full, not gone"


def test_a_worker_that_broke_off_is_asked_again_when_it_is_the_only_one():
    plane = Plane(w1=[LOST])
    dispatcher = Dispatcher(plane, 1.0)

    async def ask():
        return [d async for d in dispatcher.run(REQUEST, lambda: [instance("w1", port=1)], lambda plan: None)]

    async def main():
        for _ in range(2):
            with pytest.raises(WorkerLost):
                await ask()
        assert plane.called == ["w1", "w1"]

    run(main())


@pytest.mark.parametrize("error", [LOST, DRAINS, FULL], ids=["lost", "drains", "full"])
def test_a_worker_that_the_client_named_speaks_for_itself(error):
    """No other may take the request: what is wrong is told, and not that there is nobody of that name."""
    plane = Plane(w1=[error], w2=[5])
    dispatcher = Dispatcher(plane, 1.0, routing=Routing(RouterConfig(router_policy="direct")))
    fleet = [instance("w1", port=1), instance("w2", port=2)]
    prompt = Prompt(named(REQUEST.token_ids))

    async def ask(name):
        prompt.wish = Wish(instance=name)
        return [d async for d in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None, prompt)]

    async def main():
        for _ in range(2):  # the second time it is known to have broken off
            with pytest.raises(type(error)) as caught:
                await ask("w1")
            assert caught.value is error
        with pytest.raises(BadRequest, match="names 'w3'; workers that can take this request now: w1, w2"):
            await ask("w3")
        assert plane.called == ["w1", "w1"]

    run(main())


def test_a_named_worker_that_is_known_to_be_full_says_so():
    plane = Plane(w1=[FULL], w2=[5])
    routing = Routing(RouterConfig(router_policy="direct"))
    dispatcher = Dispatcher(plane, 1.0, routing=routing)
    fleet = [instance("w1", port=1, max_in_flight=1), instance("w2", port=2)]
    prompt = Prompt(named(REQUEST.token_ids))
    prompt.wish = Wish(instance="w1")

    async def main():
        routing.report("w1", Load(requests=1))
        with pytest.raises(TooManyRequests):
            async for _ in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None, prompt):
                pass

    run(main())


def test_nobody_is_alive():
    _, error, called = outcome(alive=[])
    assert (error.code, called) == ("no_worker", [])


def test_a_worker_that_broke_off_is_left_out_for_a_moment(monkeypatch):
    plane = Plane(w1=[LOST], w2=[5])
    dispatcher = Dispatcher(plane, 1.0)
    fleet = [instance("w1", port=1), instance("w2", port=2)]
    now = [100.0]
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: now[0])

    async def ask():
        return [d async for d in dispatcher.run(REQUEST, lambda: fleet, lambda plan: None)]

    async def main():
        for _ in range(3):
            await ask()
        assert plane.called == ["w1", "w2", "w2", "w2"]
        now[0] += dispatch.AVOID_S + 0.1
        await ask()
        assert plane.called[4:] == ["w1", "w2"], "then it gets another chance"

    run(main())


def test_the_least_loaded_is_picked_and_leaving_frees_it():
    plane = Plane(w1=["hang"], w2=[5])
    dispatcher = Dispatcher(plane, 1.0)
    fleet = [instance("w1", port=1), instance("w2", port=2)]
    plans = []

    async def ask():
        return [d async for d in dispatcher.run(REQUEST, lambda: fleet, plans.append)]

    async def main():
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

    run(main())


def test_closing_the_stream_early_leaves_the_call():
    plane = Plane(w1=[1, 2, 3, "hang"])
    dispatcher = Dispatcher(plane, 1.0)

    async def main():
        stream = dispatcher.run(REQUEST, lambda: [instance("w1", port=1)], lambda plan: None)
        await anext(stream)
        assert dispatcher.load("w1") == 1
        await stream.aclose()
        assert (dispatcher.load("w1"), plane.left) == (0, 1)

    run(main())


def test_a_worker_that_appears_meanwhile_is_tried():
    plane = Plane(w1=[LOST], w2=[4])
    dispatcher = Dispatcher(plane, 1.0)
    fleet = [instance("w1", port=1)]

    def alive():
        if plane.called:
            return [*fleet, instance("w2", port=2)]
        return fleet

    async def main():
        return [d async for batch in dispatcher.run(REQUEST, alive, lambda plan: None) for d in batch]

    assert run(main()) == [TokenDelta([4])]
