"""Requests that end or silence every worker that they come to: two at most, and nothing beside them is lost."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from support.checkpoints import picture_url
from support.deployment import chat_body, deployment
from support.loops import until
from support.processes import child, mock_worker
from support.sse import parse
from triptych.engines.abilities import Encoded
from triptych.engines.mock.tensors import EMBEDDING_DTYPE, EMBEDDING_WIDTH, embedding_of
from triptych.planes.request.limits import WireLimits

POISON, POISON_TOKEN = "Ω", 138
"""Text, and a token that is in it and in no other prompt here."""


def poisonous(worker):
    """Let ``worker`` crash at prompts with POISON_TOKEN, and at pictures 77 pixels wide where it encodes."""
    abilities = worker.engine.abilities

    async def prefills(request, embeddings):
        if POISON_TOKEN in request.token_ids:
            worker.vanish()
            await asyncio.Event().wait()
        return await prefill(request, embeddings)

    async def encodes(media):
        if any(medium.width == 77 for medium in media):
            worker.vanish()
            await asyncio.Event().wait()
        return await encode(media)

    if abilities.encoding is not None:
        encode, abilities.encoding.encode = abilities.encoding.encode, encodes
    if (prompts := prompts_of(worker)) is not None:
        prefill, prompts.prefill = prompts.prefill, prefills


def prompts_of(worker):
    """What prefills prompts in a mock engine; None in one that only encodes."""
    generating = worker.engine.abilities.generating
    return generating and generating._prompts


def check_refused(answer):
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("request_quarantined", "invalid_request_error")
    assert "--quarantine-s" in error["message"]


async def metrics(d):
    lines = (await d.http.get("/metrics")).text.splitlines()
    return {line.split()[0]: float(line.split()[-1]) for line in lines if line.startswith("triptych_")}


def susceptible(d):
    """Let every worker of ``d`` crash at poison."""
    for one in d.workers:
        poisonous(one)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("spans", "content"),
    [
        ("epd epd epd epd", POISON),
        ("p p p p d", POISON),
        ("p p p p d by rendezvous", POISON),
        ("e e e e pd", [{"type": "image_url", "image_url": {"url": picture_url(77, 64, "teal")}}]),
    ],
    ids=["epd", "prefill", "rendezvous", "encode"],
)
async def test_a_client_that_repeats_it_fells_two_of_four(spans, content, stream):
    spans, _, hand_off = spans.partition(" by ")
    args = ("--hand-off", hand_off) if hand_off else ()
    async with deployment(spans=spans.split(), engine_args=args, fallback=False) as d:
        susceptible(d)
        for _ in range(5):
            check_refused(await d.chat(content, stream=stream))
        counts = await metrics(d)
        assert counts["triptych_workers_lost_total"] == 2
        assert counts["triptych_requests_quarantined"] == 1
        assert counts["triptych_quarantine_refusals_total"] == 5
        assert (await d.chat("hello")).status_code == 200
        check_refused(await d.chat(content, stream=stream, seed=7))


@pytest.mark.parametrize("place", [0, 4, 11])
async def test_innocents_beside_it_are_answered(place):
    """Of twelve requests at four workers at once, all unanswered yet, one is poison."""
    async with deployment(workers=4, engine_args=("--prefill-ms", "100")) as d:
        susceptible(d)
        asked = [asyncio.create_task(d.chat(POISON if n == place else f"{n}", stream=n % 2 == 0)) for n in range(12)]
        for number, answer in enumerate(await asyncio.gather(*asked)):
            if number == place:
                check_refused(answer)
            else:
                assert answer.status_code == 200, answer.text
        counts = await metrics(d)
        assert counts["triptych_workers_lost_total"] == 2
        assert counts["triptych_requests_suspected"] == 0, "who was answered is cleared"


async def test_impatient_clients_do_not_hide_it():
    """Each leaves before the fall of its worker is noticed, and asks again."""
    async with deployment(workers=4) as d:
        for one in d.workers:
            prompts_of(one).prefill = _hangs(one)
        for _ in range(3):
            asking = asyncio.create_task(d.chat(POISON))
            await until(lambda asking=asking: _busy(d) or asking.done(), "it is taken, or refused")
            busy = _busy(d)
            asking.cancel()
            await asyncio.wait([asking])
            for one in busy:
                await one.idle()
                one.vanish()
            await until(lambda: d.dispatcher.in_flight == 0, "nothing is in flight")
        check_refused(await d.chat(POISON))
        assert (await metrics(d))["triptych_workers_lost_total"] == 2
        assert (await d.chat("hello")).status_code == 200


def _busy(d):
    return [one for one in d.workers if one.running]


def _hangs(worker):
    prefill = prompts_of(worker).prefill

    async def hangs(request, embeddings):
        if POISON_TOKEN in request.token_ids:
            await asyncio.Event().wait()
        return await prefill(request, embeddings)

    return hangs


async def test_two_fleets_of_drains_and_refusals_make_no_suspect():
    """Whose workers all drained or went unreached has felled none."""
    async with deployment(workers=3, engine_args=("--prefill-ms", "1500"), drain_timeout_s=0.05) as d:
        for _ in range(2):
            asked = asyncio.create_task(d.chat("x", stream=True))
            await until(lambda: any(one.running for one in d.workers), "it is there")
            await next(one for one in d.workers if one.running).drain()
        assert (await asked).status_code == 200
        counts = await metrics(d)
        assert counts["triptych_workers_lost_total"] == 0
        assert counts["triptych_requests_suspected"] == 0


async def test_the_quarantine_ends():
    async with deployment(workers=3, frontend={"quarantine_s": 0.5}) as d:
        susceptible(d)
        check_refused(await d.chat(POISON))
        for one in d.workers:
            del prompts_of(one).prefill

        async def served():
            return (await d.chat(POISON)).status_code == 200

        deadline = asyncio.get_running_loop().time() + 10
        while not await served():
            assert asyncio.get_running_loop().time() < deadline


async def test_it_can_be_turned_off():
    async with deployment(workers=4, frontend={"quarantine_s": 0}) as d:
        susceptible(d)
        answer = await d.chat(POISON)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_lost")
        assert (await metrics(d))["triptych_workers_lost_total"] == 3, "the attempts of one request"


IMPATIENT = WireLimits(keepalive_s=0.1, silence_s=0.5)


async def blocks_two(d):
    """Ask for poison beside streams of which some run at each of three workers."""
    body = chat_body("x", stream=True, ignore_eos=True, max_tokens=300)
    asked = [asyncio.create_task(d.http.post("/v1/chat/completions", json=body)) for _ in range(6)]
    await until(lambda: d.dispatcher.in_flight >= 6, "streams run")
    check_refused(await d.chat(POISON))
    check_refused(await d.chat(POISON))
    for answer in await asyncio.gather(*asked):
        assert answer.status_code == 200
        stream = parse(answer.content)
        assert (stream.error, stream.finish_reason(), stream.done) == (None, "length", True)
    assert (await metrics(d))["triptych_workers_lost_total"] == 2
    assert (await d.chat("hello")).status_code == 200


async def test_a_request_that_blocks_event_loops_blocks_two():
    async with deployment(workers=3, engine_args=("--itl-ms", "5"), wire=IMPATIENT) as d:
        for one in d.workers:
            one.vanish = one.freeze
        susceptible(d)
        await blocks_two(d)


@pytest.mark.full
@pytest.mark.event_loop(limit_s=50)
async def test_a_request_that_blocks_processes_blocks_two():
    engine = ("--itl-ms", "5", "--poison-token", f"{POISON_TOKEN}", "--poison", "hang")
    async with AsyncExitStack() as stack, deployment(workers=0, wire=IMPATIENT) as d:
        await asyncio.gather(
            *(stack.enter_async_context(child(*mock_worker(engine=engine), run_dir=d.run_dir)) for _ in range(3))
        )
        await d.ready()
        await blocks_two(d)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("spans", ["epd epd", "p p d", "e e pd"])
async def test_a_request_at_a_silent_worker_goes_to_another_once(spans, stream):
    """Its event loop answers, its engine does not."""
    content = [
        {"type": "image_url", "image_url": {"url": picture_url(64, 64, "red")}},
        {"type": "text", "text": "x"},
    ]
    async with deployment(spans=spans.split(), frontend={"response_timeout_s": 0.6}, fallback=False) as d:
        silenced = _silencing(d)
        answers = [await d.chat(content if "e" in spans.split() else f"x{n}", stream=stream) for n in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        counts = await metrics(d)
        assert counts["triptych_workers_silent_total"] == 1, "the others do not go there"
        silenced.update(d.workers)
        fresh = [{"type": "image_url", "image_url": {"url": picture_url(70, 64, "red")}}]
        answer = await d.chat(fresh if "e" in spans.split() else "y", stream=stream)
        assert answer.status_code == 504, answer.text
        assert answer.json()["error"]["code"] == "worker_silent"


async def _encoded(media):
    """Embeddings at once: nothing is decoded, which may take longer than the silence that is allowed here."""
    return [
        Encoded(memoryview(embedding_of(one.content_hash, 4)), (4, EMBEDDING_WIDTH), EMBEDDING_DTYPE, one.metadata)
        for one in media
    ]


def _silencing(d):
    """Let the first worker to prefill or encode do that for ever, and whoever else is put into the set returned."""
    silenced = set()

    def silencing(worker, work):
        async def does(*given):
            if not silenced or worker in silenced:
                silenced.add(worker)
                await asyncio.Event().wait()
            return await work(*given)

        return does

    for one in d.workers[:2]:
        if (encoding := one.engine.abilities.encoding) is not None:
            encoding.encode = silencing(one, _encoded)
        if (prompts := prompts_of(one)) is not None:
            prompts.prefill = silencing(one, prompts.prefill)
    return silenced
