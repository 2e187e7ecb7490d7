"""Mock workers at the pace of a modelled engine: the same answers in every mode, and prompts go where they are held."""

from __future__ import annotations

import asyncio
import random

import pytest

from support.checkpoints import picture_url
from support.deployment import deployment
from support.loops import until

MODES = {"EPD": ["epd"], "E/PD": ["e", "pd"], "EP/D": ["ep", "d"], "E/P/D": ["e", "p", "d"]}
PACE = ("--pace", "demo-cpu")
LONG = "once upon a time there was a router that knew where everything was kept. " * 20


async def answers(spans, engine_args):
    picture = {"type": "image_url", "image_url": {"url": picture_url(64, 64, "red")}}
    async with deployment(spans=spans, engine_args=engine_args) as d:
        asked = ["hello", [picture, {"type": "text", "text": "what is it?"}, picture], LONG]
        got = await asyncio.gather(*(d.chat(content, max_tokens=12) for content in asked))
        assert [one.status_code for one in got] == [200] * 3
        await until(lambda: all(one.running == 0 for one in d.workers), "no engine works")
        return [(one.json()["choices"][0]["message"]["content"], one.json()["usage"]) for one in got]


@pytest.mark.parametrize("mode", MODES)
async def test_the_pace_changes_no_answer(mode):
    assert await answers(MODES[mode], PACE) == await answers(MODES[mode], ())


@pytest.mark.parametrize("policy", ["kv", "least-loaded"])
async def test_a_prompt_comes_back_to_who_holds_it(policy):
    """The first of two equal workers is busy when a prompt comes, and idle when it comes again."""
    frontend = {"plan_header": True, "router_policy": policy}
    async with deployment(spans=["epd", "epd"], frontend=frontend, engine_args=PACE) as d:
        busy = asyncio.create_task(d.chat("x", max_tokens=3000, ignore_eos=True))
        await until(lambda: any(one.running for one in d.workers), "one is busy")
        first = await d.chat(LONG, max_tokens=2)
        holder = next(one for one in d.workers if one.running == 0)
        busy.cancel()
        await until(lambda: all(one.running == 0 for one in d.workers), "none is busy")
        levels = d.dispatcher.routing._levels
        held = len(holder.engine.abilities.kv_reports.snapshot()[0].hashes) // 8
        await until(lambda: len(levels[0]) >= held, "the frontend was told")
        await until(lambda: d.dispatcher.in_flight == 0, "nothing is counted any more")
        again = [(await d.chat(LONG, max_tokens=2)).headers["x-triptych-plan"] for _ in range(3)]
        first = first.headers["x-triptych-plan"]
    if policy == "kv":
        assert again == [first] * 3
    else:
        assert set(again) != {first}, "without looking at what is held, another order decides"


@pytest.mark.parametrize("credit", [0.8, 0.0])
async def test_a_prompt_comes_back_to_whose_host_memory_holds_it(credit):
    """No device has anything left of it; without credit for host memory, as little is known of it as of a new one."""
    engine_args = (*PACE, "--kv-tokens", "256", "--host-kv-tokens", "4096")
    prompts = [[number] * 160 for number in range(20, 34)]
    frontend = {"plan_header": True, "router_host_credit": credit, "router_disk_credit": credit}
    async with deployment(spans=["epd", "epd"], frontend=frontend, engine_args=engine_args) as d:

        async def where(prompt):
            return (await d.complete(prompt, max_tokens=1)).headers["x-triptych-plan"]

        plans = []
        for pair in zip(prompts[::2], prompts[1::2], strict=True):  # two at a time go to different workers
            plans += await asyncio.gather(*map(where, pair))
        homes = dict(zip(map(tuple, prompts), plans, strict=True))
        here = [[one for one in prompts if homes[tuple(one)] == plan] for plan in sorted(set(plans))]
        offloaded = [one for held in here for one in held[:-2]]
        levels = d.dispatcher.routing._levels
        await until(lambda: len(levels[1]) == 10 * len(prompts), "the frontend was told")
        random.Random(1).shuffle(offloaded)
        found = [(homes[tuple(one)], await where(one)) for one in offloaded]
    assert len(found) == 10
    assert all(home == now for home, now in found) is bool(credit)
