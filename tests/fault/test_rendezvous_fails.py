"""A prefill and a decode that meet in a room: one of them dies, hangs or is left, and nothing waits for it for ever."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from support.deployment import deployment
from support.loops import until
from support.sse import parse

MEET = ("--hand-off", "rendezvous")
SPANS = ["p", "p", "d", "d"]
TEXT = "user\nhello\nassistant\n"


@asynccontextmanager
async def meeting(*engine_args, spans=SPANS, drain_timeout_s=10.0, **frontend):
    settings = {"fallback": False, "drain_timeout_s": drain_timeout_s}
    async with deployment(spans=spans, engine_args=(*MEET, *engine_args), frontend=frontend, **settings) as d:
        yield d
        await nothing_left(d)


async def nothing_left(d):
    alive = [one for one in d.workers if not one.task.done()]
    await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")
    await until(lambda: all(one.running == 0 for one in alive), "no engine works")
    await until(lambda: not any(len(one.engine.rooms) for one in alive), "nobody waits in a room")
    await until(lambda: all(one.counts["transfer_leases"] == 0 for one in alive), "no lease is left")
    await until(lambda: all(one.counts["transfer_arena_used_bytes"] == 0 for one in alive), "and no KV cache")


def working(d, span):
    return [one for one in d.workers if one.instance.span.value == span and one.running]


async def both_wait(d):
    """The prefill computes, the decode waits for it in the room."""
    await until(lambda: working(d, "p") and working(d, "d"), "both have begun")
    [giver], [taker] = working(d, "p"), working(d, "d")
    await until(lambda: any(room.has_taker for room in giver.engine.rooms._rooms.values()), "they are in one room")
    return giver, taker


@pytest.mark.parametrize("who", ["prefill", "decode"])
@pytest.mark.parametrize("how", ["kill", "break_connections", "vanish", "drain"])
async def test_one_is_lost_while_the_other_waits_for_it(who, how):
    async with meeting("--prefill-ms", "60", drain_timeout_s=0.02) as d:
        asking = asyncio.create_task(d.chat("hello"))
        pair = await both_wait(d)
        ended = getattr(pair[who == "decode"], how)()
        if ended is not None:
            await ended
        answer = await asking
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize("span", ["p", "d"])
async def test_one_cannot_be_reached_at_all(span):
    """Discovery does not know yet that it is gone. The other is called meanwhile, and comes to a room in vain."""
    async with meeting() as d:
        next(one for one in d.workers if one.instance.span.value == span).vanish()
        for answer in await asyncio.gather(*(d.chat("hello") for _ in range(4))):
            assert answer.json()["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize("span", ["p", "d"])
async def test_one_that_freezes_is_given_up_and_two_others_meet(span):
    async with meeting("--prefill-ms", "40", response_timeout_s=0.3) as d:
        asking = asyncio.create_task(d.chat("hello", stream=True))
        await both_wait(d)
        begun = time.monotonic()
        [frozen] = working(d, span)
        frozen.freeze()
        assert parse((await asking).content).text() == TEXT
        assert time.monotonic() - begun < 2
        others = [one for one in d.workers if one.instance.span.value == span and one is not frozen]
        assert [one.running for one in others] == [0]
        frozen.break_connections()


async def test_a_prefill_that_says_nothing_is_given_up_with_its_own_error():
    async with meeting("--prefill-ms", "60000", spans=["p", "d"], response_timeout_s=0.2) as d:
        begun = time.monotonic()
        answer = await d.chat("hello")
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "worker_silent"
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_while_both_wait(stream):
    async with meeting("--prefill-ms", "30000") as d:
        asking = asyncio.create_task(d.chat("hello", stream=stream))
        await both_wait(d)
        asking.cancel()
        await nothing_left(d)


async def test_clients_that_leave_at_any_moment():
    async with meeting("--prefill-ms", "4", "--itl-ms", "1") as d:

        async def leaves(number):
            asking = asyncio.create_task(d.chat(f"{number}", stream=True, ignore_eos=True, max_tokens=2000))
            await asyncio.wait([asking], timeout=0.001 * number)
            asking.cancel()

        await asyncio.gather(*(leaves(number) for number in range(32)))
        await nothing_left(d)
        assert (await d.chat("hello")).status_code == 200


async def test_what_is_wrong_with_a_request_is_told_once_and_leaves_no_room():
    async with meeting("--kv-tokens", "64", "--pace", "demo-cpu", spans=["p", "d"]) as d:
        answer = await d.complete(list(range(5, 105)), max_tokens=2)
        assert answer.status_code == 400, answer.text
        assert "do not fit a KV cache" in answer.json()["error"]["message"]
        good = await d.complete(list(range(5, 25)), max_tokens=3, temperature=0)
        assert good.json()["usage"]["completion_tokens"] == 3
