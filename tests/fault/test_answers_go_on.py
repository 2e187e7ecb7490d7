"""A worker is lost while it answers: another goes on, and the client gets the answer that it would have got."""

from __future__ import annotations

import asyncio
import time

import pytest

from support.checkpoints import picture_url
from support.deployment import chat_body, deployment
from support.loops import until
from support.sse import parse
from triptych.stages.request_state import patience
from triptych.stages.request_state.rules import FIRST_PAUSE_S

CONTENT = [
    {"type": "image_url", "image_url": {"url": picture_url(64, 64, "teal")}},
    {"type": "text", "text": "what is it?"},
]
FIELDS = {"ignore_eos": True, "max_tokens": 60, "logprobs": True, "top_logprobs": 2, "stop": ["never said"]}
SLOW = ("--itl-ms", "4")
MEET = ("--hand-off", "rendezvous")


def told(answer, stream):
    """What a client gets of an answer that must not depend on who made it."""
    assert answer.status_code == 200, answer.text
    if not stream:
        body = answer.json()
        return body["choices"], body["usage"]
    parsed = parse(answer.content)
    assert parsed.error is None, parsed.error
    assert parsed.done
    logprobs = [c["logprobs"] for event in parsed.events for c in event["choices"] if c.get("logprobs")]
    return parsed.text(), parsed.finish_reason(), parsed.usage, logprobs


async def asked(d, stream, content=CONTENT, **fields):
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return told(await d.chat(content, stream=stream, **options, **{**FIELDS, **fields}), stream)


async def resumed(d):
    """The metric."""
    text = (await d.http.get("/metrics")).text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith("triptych_requests_resumed_t"))


async def answering(d, stage="d"):
    """The worker that runs ``stage`` and has begun to answer."""
    able = [one for one in d.workers if stage in one.instance.span.value]
    await until(lambda: any(one.running for one in able), "one answers")
    worker = next(one for one in able if one.running)
    made = worker.engine.stats().generated_tokens
    await worker.made(made + 10)
    return worker


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("spans", [["epd"], ["e", "pd"], ["ep", "d"], ["e", "p", "d"]], ids="/".join)
async def test_every_mode_goes_on(spans, stream):
    await goes_on(spans, stream, SLOW)


async def test_a_rendezvous_goes_on():
    await goes_on(["e", "p", "d"], True, (*SLOW, *MEET))


async def goes_on(spans, stream, engine_args):
    async with deployment(spans=[*spans, *spans], engine_args=engine_args, fallback=False) as d:
        undisturbed = await asked(d, stream)
        assert await resumed(d) == 0
        asking = asyncio.create_task(asked(d, stream))
        await (await answering(d)).kill()
        assert await asking == undisturbed
        assert await resumed(d) == 1


@pytest.mark.parametrize(("span", "how"), [("e", ()), ("p", ()), ("p", MEET)])
async def test_a_worker_that_has_done_its_part_may_go_without_a_retry(span, how):
    async with deployment(spans=["e", "p", "d"], engine_args=(*SLOW, *how)) as d:
        undisturbed = await asked(d, True)
        asking = asyncio.create_task(asked(d, True))
        await answering(d)
        await next(one for one in d.workers if one.instance.span.value == span).kill()
        assert await asking == undisturbed
        assert await resumed(d) == 0


@pytest.mark.parametrize("how", [(), MEET])
async def test_the_prefill_for_going_on_may_be_lost_too(how):
    """Of two prefill workers the one that would go on dies with the decode worker."""
    async with deployment(spans=["p", "p", "d", "d"], engine_args=(*SLOW, *how), fallback=False) as d:
        undisturbed = await asked(d, True, "hello")
        asking = asyncio.create_task(asked(d, True, "hello"))
        worker = await answering(d)
        await asyncio.gather(worker.kill(), d.workers[0].kill())
        assert await asking == undisturbed


async def test_each_of_several_choices_goes_on_by_itself():
    async with deployment(workers=2, engine_args=SLOW) as d:
        undisturbed = await asked(d, False, "x", n=4)
        asking = asyncio.create_task(asked(d, False, "x", n=4))
        await (await answering(d)).kill()
        assert await asking == undisturbed
        assert await resumed(d) == 2


async def test_lost_again_and_again():
    async with deployment(workers=4, engine_args=SLOW) as d:
        undisturbed = await asked(d, True, "x")
        asking = asyncio.create_task(asked(d, True, "x"))
        for _ in range(3):
            await (await answering(d)).kill()
        assert await asking == undisturbed
        assert await resumed(d) == 3


async def test_the_end_of_a_drain_is_a_loss_as_well():
    async with deployment(workers=2, engine_args=SLOW, drain_timeout_s=0.02) as d:
        undisturbed = await asked(d, True, "x")
        asking = asyncio.create_task(asked(d, True, "x"))
        await (await answering(d)).drain()
        assert await asking == undisturbed


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_nobody_is_left(stream):
    """One clear error, when the wait is over and not before."""
    async with deployment(workers=2, engine_args=SLOW) as d:
        asking = asyncio.create_task(d.chat("x", stream=stream, **FIELDS))
        await answering(d)
        begun = time.monotonic()
        await asyncio.gather(*(one.kill() for one in d.workers))
        answer = await asking
        assert time.monotonic() - begun > 0.2, "the limit is 0.3 s here"
        error = parse(answer.content).error if stream else answer.json()["error"]
        assert error["code"] == "worker_lost"
        assert answer.status_code == (200 if stream else 503)
        assert await resumed(d) == 0


@pytest.mark.parametrize("pause_s", [FIRST_PAUSE_S, 60.0])
async def test_a_worker_that_comes_later_goes_on(pause_s, monkeypatch):
    """Though the next look is far away: word that a worker came ends the pause."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", pause_s)
    async with deployment(engine_args=SLOW, frontend={"resume_timeout_s": 20.0}) as d:
        undisturbed = await asked(d, True, "x")
        asking = asyncio.create_task(asked(d, True, "x"))
        await (await answering(d)).kill()
        await d.add_worker(engine_args=SLOW)
        assert await asking == undisturbed


async def test_a_client_that_leaves_in_the_pause_is_forgotten():
    async with deployment(engine_args=SLOW, frontend={"resume_timeout_s": 60.0}) as d:
        body = chat_body("x", stream=True, **FIELDS)
        async with d.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            events = answer.aiter_raw()
            await anext(events)
            await d.worker.kill()
            await d.ready(False)
        later = await d.add_worker(engine_args=SLOW)
        await d.ready()
        await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")
        metrics = (await d.http.get("/metrics")).text
        assert 'triptych_requests_cancelled_total{model="demo"} 1.0' in metrics
        assert later.engine.stats().generated_tokens == 0


@pytest.mark.parametrize("fields", [{"presence_penalty": 0.5}, {"frequency_penalty": 0.5}])
async def test_an_answer_that_only_its_first_worker_can_continue_ends(fields):
    async with deployment(spans=["p", "p", "d", "d"], engine_args=SLOW, fallback=False) as d:
        asking = asyncio.create_task(d.chat("x", stream=True, **FIELDS, **fields))
        await (await answering(d)).kill()
        assert parse((await asking).content).error["code"] == "worker_lost"
