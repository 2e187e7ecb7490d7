"""Many workers gone at once, which discovery still shows: whoever did not take a request has cost it nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from support.checkpoints import picture_url
from support.deployment import deployment
from support.loops import until
from support.sse import parse
from triptych.planes.request.limits import WireLimits

SLOW = ("--encode-ms", "40", "--prefill-ms", "80", "--itl-ms", "10")


def picture(number):
    url = picture_url(32 + number, 64, "teal")
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": f"{number}"}]


async def answered(d, asked, words):
    """Check that each of ``asked`` got its whole answer, and nothing but it."""
    bad = Counter()
    for number, answer in enumerate(await asyncio.gather(*asked)):
        if answer.status_code != 200:
            bad[answer.text] += 1
            continue
        is_stream = answer.headers["content-type"].startswith("text/event-stream")
        parsed = parse(answer.content) if is_stream else None
        text = parsed.text() if parsed else answer.json()["choices"][0]["message"]["content"]
        assert parsed is None or parsed.done
        assert text == f"user\n{words(number)}\nassistant\n", answer.text
    assert not bad, f"{bad.total()} of {len(asked)} lost: {bad}"


async def metric(d, name):
    text = (await d.http.get("/metrics")).text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))


@pytest.mark.parametrize(("workers", "requests"), [(20, 80), pytest.param(40, 254, marks=pytest.mark.full)])
@pytest.mark.event_loop(limit_s=50)
async def test_half_of_all_workers_killed_under_load(workers, requests):
    async with deployment(workers=workers, engine_args=("--prefill-ms", "500", "--itl-ms", "20")) as d:
        asked = [asyncio.create_task(d.chat(f"{n}", stream=n % 2 == 0)) for n in range(requests)]
        await until(lambda: sum(one.running for one in d.workers) > workers, "there is load")
        for one in d.workers[::2]:
            one.vanish()
        later = [asyncio.create_task(d.chat(f"{n}", stream=n % 2 == 0)) for n in range(20)]
        await answered(d, asked, str)
        await answered(d, later, str)
        assert await metric(d, "triptych_requests_not_taken_total") > 0
        assert await metric(d, "triptych_requests_quarantined") == 0
        assert await metric(d, "triptych_workers_lost_total") <= workers // 2


@pytest.mark.parametrize(
    ("spans", "gone"),
    [
        ("epd epd epd epd epd epd epd epd", "0123456"),
        ("e e e e e e pd pd", "01234"),
        ("p p p p p p d d", "01234"),
        ("p p d d d d d d", "23456"),
        ("e e e e p p p p d d d d", "012456"),
    ],
    ids=["all but one", "encode", "prefill", "decode but one", "encode and prefill"],
)
@pytest.mark.event_loop(limit_s=50)
async def test_most_of_each_pool_is_lost_and_every_request_is_answered(spans, gone):
    """``gone``: their places; enough are left of each stage."""
    async with deployment(spans=spans.split(), engine_args=SLOW, fallback=False) as d:
        left = [one for place, one in enumerate(d.workers) if str(place) not in gone]
        with_media = "e" in spans.split()
        asked = [
            asyncio.create_task(d.chat(picture(n) if with_media else f"{n}", stream=n % 2 == 0)) for n in range(40)
        ]
        await until(lambda: sum(one.running for one in d.workers) > 3, "there is load")
        for one in d.workers:
            if one not in left:
                one.vanish()
        await answered(d, asked, str)
        await answered(d, [d.chat(picture(50 + n) if with_media else f"{50 + n}") for n in range(8)], lambda n: n + 50)


@pytest.mark.parametrize("how", ["closes at once", "says nothing"])
@pytest.mark.event_loop(limit_s=50)
async def test_something_else_listens_where_they_were(how):
    """It accepts, and closes or holds the connection; nothing that is sent there was taken."""
    wire = WireLimits(keepalive_s=0.1, silence_s=0.4)

    async def strange(reader, writer):
        if how == "says nothing":
            await reader.read()
        writer.close()

    async with AsyncExitStack() as stack, deployment(workers=8, engine_args=SLOW, wire=wire) as d:
        await answered(d, [d.chat(f"{n}") for n in range(16)], str)
        for one in d.workers[:6]:
            one.vanish()
        for one in d.workers[:6]:
            server = await asyncio.start_server(strange, one.instance.host, one.instance.port)
            stack.callback(server.close)
        await answered(d, [d.chat(f"{n}", stream=n % 2 == 0) for n in range(60)], str)
        assert await metric(d, "triptych_requests_suspected") == 0


@pytest.mark.event_loop(limit_s=50)
async def test_half_of_the_fleet_drains():
    """Discovery shows them still: their refusals cost nothing."""
    async with deployment(workers=16, engine_args=SLOW) as d:
        draining = [asyncio.create_task(one.server.drain(10.0)) for one in d.workers[:12]]
        await asyncio.sleep(0)
        await answered(d, [d.chat(f"{n}", stream=n % 2 == 0) for n in range(60)], str)
        await asyncio.gather(*draining)
        assert await metric(d, "triptych_workers_lost_total") == 0


async def test_nobody_is_left():
    async with deployment(workers=6) as d:
        for one in d.workers:
            one.vanish()
        await until(lambda: not any(one.server.connections for one in d.workers), "their connections are gone")
        answer = await d.chat("x")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "worker_lost"
