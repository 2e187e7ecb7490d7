"""The four modes on the mock engine: one service, the same answers, and every hand-over really made."""

import asyncio
import base64

import pytest

from support.checkpoints import picture_url
from support.deployment import deployment
from support.loops import until
from support.sse import parse
from triptych.contracts.spans import Span

MODES = {"EPD": ["epd"], "E/PD": ["e", "pd"], "EP/D": ["ep", "d"], "E/P/D": ["e", "p", "d"]}
SPLIT = {mode: spans for mode, spans in MODES.items() if "E/" in mode}
MEET = " by rendezvous"
"""Ends the name of a mode whose workers hand the KV cache over so."""
KV_SPLIT = ["EP/D", "E/P/D", "EP/D" + MEET, "E/P/D" + MEET]
PLANS = {"EPD": "epd@epd-0", "E/PD": "e@e-0 pd@pd-1", "EP/D": "ep@ep-0 d@d-1", "E/P/D": "e@e-0 p@p-1 d@d-2"}
TEXT_PLANS = {"EPD": "pd@epd-0", "E/PD": "pd@pd-1", "EP/D": "p@ep-0 d@d-1", "E/P/D": "p@p-1 d@d-2"}


def content(*colours, text="what is it?"):
    parts = [{"type": "image_url", "image_url": {"url": picture_url(64, 64, colour)}} for colour in colours]
    return [*parts, {"type": "text", "text": text}]


def cut(mode):
    """The mode without its way to hand over."""
    return mode.removesuffix(MEET)


def in_mode(mode, engine_args=(), **settings):
    frontend = {"plan_header": True, **settings.pop("frontend", {})}
    args = (*engine_args, *(["--hand-off", "rendezvous"] if mode.endswith(MEET) else []))
    return deployment(spans=MODES[cut(mode)], frontend=frontend, engine_args=args, **settings)


async def said(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


async def idle(d):
    """Nothing is left of any request anywhere."""
    await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")
    await until(lambda: all(one.counts["transfer_leases"] == 0 for one in d.workers), "no lease is left")
    await until(lambda: all(one.running == 0 for one in d.workers), "no engine works")
    await until(lambda: not any(len(one.engine.rooms) for one in d.workers), "nobody waits in a room")
    for one in d.workers:
        await until(lambda one=one: _holds_what_it_keeps(one), "arenas hold what caches keep")


def _holds_what_it_keeps(worker):
    return (worker.counts["transfer_arena_used_bytes"] > 0) == (len(worker.worker.cache.store) > 0)


COLOURS = ([], ["red"], ["red", "blue", "red", "green"])


async def asked_everything(mode):
    """(text, prompt tokens) of each answer, whole; streamed ones, from warm caches, must say the same."""
    answers = []
    async with in_mode(mode) as d:
        assert (await d.http.get("/health")).json()["models"]["demo"]["mode"] == cut(mode)
        for colours in COLOURS:
            asked = content(*colours)
            first = await d.chat(asked, max_tokens=50)
            answers.append((await said(first), first.json()["usage"]))
            assert first.headers["x-triptych-plan"] == (PLANS if colours else TEXT_PLANS)[cut(mode)]
            streamed = await d.chat(asked, max_tokens=50, stream=True, stream_options={"include_usage": True})
            events = parse(streamed.content)
            assert (events.text(), events.usage) == answers[-1]
        await idle(d)
    return answers


@pytest.mark.parametrize("mode", ["E/PD", *KV_SPLIT])
async def test_the_same_answers(mode):
    answers = await asked_everything(mode)
    assert "what is it?" in answers[0][0]
    assert answers == await asked_everything("EPD")


@pytest.mark.parametrize("mode", [*SPLIT, "E/P/D" + MEET])
async def test_a_repeated_picture_is_encoded_once_and_not_sent_again(mode):
    async with in_mode(mode) as d:
        encoder, target = d.workers[0], d.workers[1]
        asked = [content(colour) for colour in ("red", "blue", "red", "green", "red", "blue")]
        await asyncio.gather(*(d.chat(one) for one in asked))
        assert encoder.counts["engine_encoded_media_total"] == 3, "as many as there are distinct ones"
        exported, fetched = encoder.counts["transfer_exported_total"], target.counts["transfer_fetched_total"]
        assert fetched == 3
        again = await d.chat(content("blue"))
        assert again.headers["x-triptych-plan"] == TEXT_PLANS[cut(mode)], "it is at the worker that prefills"
        assert encoder.counts["transfer_exported_total"] == exported
        assert target.counts["transfer_fetched_total"] == fetched


@pytest.mark.parametrize("mode", [*SPLIT, "E/P/D" + MEET])
async def test_a_worker_that_forgot_is_told_again(mode):
    async with in_mode(mode) as d:
        encoder, target = d.workers[0], d.workers[1]
        before = await said(await d.chat(content("red", "blue")))
        target.worker.cache.store.clear()
        assert await said(await d.chat(content("red", "blue"))) == before
        assert encoder.counts["engine_encoded_media_total"] == 2, "the encode worker still held them"
        target.worker.cache.store.clear()
        encoder.worker.cache.store.clear()
        assert await said(await d.chat(content("red", "blue"))) == before
        assert encoder.counts["engine_encoded_media_total"] == 4
        await idle(d)


async def test_without_embedding_caches():
    async with in_mode("E/PD", embedding_cache_bytes=0) as d:
        answers = [await said(await d.chat(content("red", "blue", "red"))) for _ in range(3)]
        assert len(set(answers)) == 1
        assert d.workers[0].counts["engine_encoded_media_total"] == 6
        assert d.workers[0].counts["embedding_cache_bytes"] == 0
        await idle(d)


async def test_an_embedding_larger_than_the_cache_is_served():
    async with in_mode("E/PD", embedding_cache_bytes=64) as d:
        assert "what" in await said(await d.chat(content("red")))
        assert "what" in await said(await d.chat(content("red")))
        assert d.workers[0].counts["embedding_cache_too_large_total"] == 2
        await idle(d)


@pytest.mark.parametrize("mode", [*MODES, "E/P/D" + MEET])
async def test_many_at_once(mode):
    async with in_mode(mode, engine_args=("--itl-ms", "1")) as d:
        colours = ["red", "green", "blue", "teal", "gold", "plum"]
        asked = [content(colours[n % 6], colours[n % 5], text=f"number {n}") for n in range(40)]
        answers = await asyncio.gather(*(d.chat(one, max_tokens=60) for one in asked))
        for number, answer in enumerate(answers):
            assert f"number {number}" in await said(answer)
        if cut(mode) in SPLIT:
            assert d.workers[0].counts["engine_encoded_media_total"] == 6


@pytest.mark.parametrize("mode", KV_SPLIT)
@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 1.0}, {"temperature": 1.0, "seed": 3}, {"presence_penalty": 1.0}]
)
async def test_prefill_apart_says_no_token_twice_and_loses_none(mode, fields):
    async with in_mode(mode) as d:
        answer = await d.complete([5, 6, 7, 8, 9], max_tokens=5, ignore_eos=True, logprobs=1, **fields)
        assert answer.status_code == 200
        tokens = answer.json()["choices"][0]["logprobs"]["tokens"]
        plain = (await d.complete([5, 6, 7, 8, 9], max_tokens=5, temperature=0, logprobs=1)).json()
        assert sorted(tokens) == sorted(plain["choices"][0]["logprobs"]["tokens"])
        assert answer.json()["usage"] == plain["usage"]
        await idle(d)


@pytest.mark.parametrize("mode", ["EP/D", "E/P/D"])
async def test_one_token_needs_no_decode_worker(mode):
    async with in_mode(mode) as d:
        answer = await d.chat(content("red"), max_tokens=1)
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert answer.json()["usage"]["completion_tokens"] == 1
        assert d.workers[-1].engine.stats().generated_tokens == 0
        await idle(d)


async def test_one_token_by_rendezvous_is_said_once():
    async with in_mode("E/P/D" + MEET) as d:
        answer = await d.chat(content("red"), max_tokens=1)
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert answer.json()["usage"]["completion_tokens"] == 1
        await idle(d)


async def test_workers_that_hand_over_in_other_ways_serve_side_by_side():
    """Each prefill goes to a worker that can give its KV cache to the one that decodes."""
    async with deployment(spans=["p", "d"], frontend={"plan_header": True}) as d:
        for place, span in ((2, Span.P), (3, Span.D)):
            await d.add_worker(span=span, instance_name=f"{span}-{place}", engine_args=("--hand-off", "rendezvous"))
        await until_instances(d, 4)
        answers = await asyncio.gather(*(d.chat(f"number {n}", max_tokens=60) for n in range(12)))
        for number, answer in enumerate(answers):
            assert f"number {number}" in await said(answer)
        assert {answer.headers["x-triptych-plan"] for answer in answers} == {"p@p-0 d@d-1", "p@p-2 d@d-3"}
        await idle(d)


async def test_a_rolling_change_from_one_mode_to_another_fails_nothing():
    async with in_mode("EPD") as d:
        stop, failed, plans = asyncio.Event(), [], set()

        async def keep_asking():
            number = 0
            while not stop.is_set():
                number += 1
                answer = await d.chat(content(["red", "blue", "teal"][number % 3]))
                plans.add(answer.headers.get("x-triptych-plan", ""))
                if answer.status_code != 200:
                    failed.append(answer.text)

        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        await d.add_worker(span=Span.E, instance_name="enc")
        await d.add_worker(span=Span.PD, instance_name="rest")
        await until(lambda: any("enc" in plan for plan in plans), "the new mode is used")
        await d.workers[0].drain()
        await until(lambda: d.dispatcher.in_flight <= 4, "the old worker is gone")
        plans.clear()
        await until(lambda: len(plans) > 0, "the new mode carries all")
        stop.set()
        await asyncio.gather(*asking)
        assert not failed
        assert not any("epd-0" in plan for plan in plans)


async def test_a_span_that_is_missing_is_named():
    async with deployment(spans=["e", "pd"], fallback=False) as d:
        await d.workers[0].drain()
        await until_instances(d, 1)
        answer = await d.chat(content("red"))
        assert answer.status_code == 503
        assert "'e'" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"]
        assert "text" in await said(await d.chat("text")), "a text needs no encoder"
        assert (await d.http.get("/ready")).status_code == 200
        await d.workers[1].drain()
        await until_instances(d, 0)
        ready = await d.http.get("/ready")
        assert ready.status_code == 503
        assert "span" in ready.json()["error"]["message"]


async def until_instances(d, left):
    deadline = asyncio.get_running_loop().time() + 10
    while len((await d.http.get("/health")).json()["models"]["demo"]["instances"]) != left:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def test_short_and_seen_prompts_stay_at_the_decode_worker():
    async with in_mode("E/P/D", frontend={"local_prefill_tokens": 40}) as d:
        short = await d.complete(list(range(10, 40)), max_tokens=2)
        assert short.headers["x-triptych-plan"] == "pd@d-2"
        long = list(range(10, 310))
        assert (await d.complete(long, max_tokens=2)).headers["x-triptych-plan"] == "p@p-1 d@d-2"
        more = await d.complete([*long, *range(5, 25)], max_tokens=2)
        assert more.headers["x-triptych-plan"] == "pd@d-2", "all but the end was seen there"
        metrics = (await d.http.get("/metrics")).text
        assert 'triptych_plans_total{model="demo",steps="pd"} 2.0' in metrics
        assert 'triptych_plans_total{model="demo",steps="p/d"} 1.0' in metrics


async def test_the_plan_header_is_off_by_default():
    async with deployment(spans=["e", "pd"]) as d:
        assert "x-triptych-plan" not in (await d.chat("hi")).headers


async def test_metrics_of_workers_are_the_frontends():
    async with in_mode("E/PD") as d:
        await d.chat(content("red"))
        text = (await d.http.get("/metrics")).text
        assert 'triptych_engine_encoded_media_total{model="demo",span="e",worker="e-0"} 1.0' in text
        assert 'triptych_transfer_fetched_total{model="demo",span="pd",worker="pd-1"} 1.0' in text
        assert text.count("# TYPE triptych_transfer_fetched_total") == 1


async def test_bad_pictures_are_refused_by_the_encode_worker_in_the_same_words():
    whole = base64.b64decode(picture_url(64, 64, "red").split(",")[1])
    broken = "data:image/png;base64," + base64.b64encode(whole[:-30]).decode()
    messages = []
    for mode in (*MODES, "EP/D" + MEET, "E/P/D" + MEET):
        async with in_mode(mode) as d:
            answer = await d.chat([{"type": "image_url", "image_url": {"url": broken}}])
            assert answer.status_code == 400
            messages.append(answer.json()["error"]["message"])
            await idle(d)
    assert len(set(messages)) == 1
