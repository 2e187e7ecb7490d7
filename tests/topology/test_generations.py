"""Bounds count generations, each choice of each prompt, and a request of many is answered in turns."""

from __future__ import annotations

import asyncio
import gc
import re
import threading

from support.deployment import deployment
from support.errors import check_error
from support.loops import until, until_async
from triptych.contracts.answer import TokenLogprob
from triptych.frontend.openai.chat.answers import ChatAnswer
from triptych.frontend.openai.choice import Choice
from triptych.frontend.openai.completions.answers import CompletionAnswer


def metric(text, name):
    return float(re.search(rf"^triptych_{name} (\S+)$", text, re.MULTILINE)[1])


async def test_more_choices_than_may_run_are_answered_in_turns():
    """Streamed and whole; no more run at once than may."""
    settings = {"max_running": 2}
    async with deployment(frontend=settings, engine_args=("--itl-ms", "10")) as d:
        most = 0

        async def watch():
            nonlocal most
            while True:
                most = max(most, d.worker.running)
                await asyncio.sleep(0.001)

        watching = asyncio.create_task(watch())
        fields = {"n": 8, "max_tokens": 15, "ignore_eos": True}
        whole, streamed = await asyncio.gather(
            d.chat("one", **fields),
            d.complete(["two", "three"], n=4, max_tokens=15, stream=True),
        )
        watching.cancel()
        assert [one["finish_reason"] for one in whole.json()["choices"]] == ["length"] * 8
        assert streamed.text.count('"finish_reason":"') == 8
        assert "[DONE]" in streamed.text
        assert most == 2
        text = (await d.http.get("/metrics")).text
        assert metric(text, "generations_running") == metric(text, "generations_waiting") == 0


async def test_a_small_request_is_not_held_up_by_a_large_one():
    settings = {"max_running": 2}
    async with deployment(frontend=settings, engine_args=("--itl-ms", "5")) as d:
        large = asyncio.create_task(d.chat("x", n=16, max_tokens=40, ignore_eos=True))
        await d.worker.busy(2)
        assert (await d.chat("hello")).status_code == 200
        assert not large.done(), "the small one waited for all of the large one"
        assert len((await large).json()["choices"]) == 16


async def test_requests_of_more_generations_than_there_are_places_are_refused_by_field():
    settings = {"max_in_flight": 20, "max_running": 2, "max_waiting": 6}
    async with deployment(frontend=settings) as d:
        for answer, param, flag in (
            (await d.chat("x", n=16), "n", "--max-running"),
            (await d.complete(["x"] * 9), "prompt", "--max-waiting"),
            (await d.complete(["x"] * 11, n=2), "n", "--max-in-flight"),
            (await d.complete(["x"] * 64), "prompt", "--max-in-flight"),
        ):
            error = check_error(answer, 400)
            assert (error["param"], error["code"]) == (param, "too_many_generations")
            assert flag in error["message"]
        assert (await d.chat("x", n=8)).status_code == 200
        health = (await d.http.get("/health")).json()
        assert health["requests_in_flight"] == health["generations_in_flight"] == 0


async def test_in_flight_counts_generations():
    settings = {"max_in_flight": 10}
    async with deployment(frontend=settings, engine_args=("--prefill-ms", "10000")) as d:
        large = asyncio.create_task(d.complete(["x", "y", "z"], n=3))
        await d.worker.busy(9)
        health = (await d.http.get("/health")).json()
        assert (health["requests_in_flight"], health["generations_in_flight"]) == (1, 9)
        error = check_error(await d.chat("x", n=2), 429)
        assert error["code"] == "too_many_requests"
        assert "9 generations" in error["message"]
        small = asyncio.create_task(d.chat("x"))
        await d.worker.busy(10)
        assert metric((await d.http.get("/metrics")).text, "generations_in_flight") == 10
        for task in (large, small):
            task.cancel()
        await asyncio.wait([large, small])
        await d.worker.idle()

        async def none():
            return metric((await d.http.get("/metrics")).text, "generations_in_flight") == 0

        await until_async(none, "all places are given back")


async def test_a_client_that_leaves_a_large_request_leaves_nothing():
    settings = {"max_running": 2}
    async with deployment(frontend=settings, engine_args=("--itl-ms", "20")) as d:
        large = asyncio.create_task(d.chat("x", n=16, max_tokens=2000, ignore_eos=True))
        await d.worker.busy(2)
        large.cancel()
        await asyncio.wait([large])
        await d.worker.idle()
        assert (await d.chat("hello")).status_code == 200
        await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")


async def test_the_json_of_many_log_probabilities_is_made_beside_the_event_loop(monkeypatch):
    made_in = []
    whole = ChatAnswer.whole

    def seen(self, *args):
        made_in.append(threading.current_thread() is threading.main_thread())
        return whole(self, *args)

    monkeypatch.setattr(ChatAnswer, "whole", seen)
    async with deployment() as d:
        fields = {"ignore_eos": True, "logprobs": True, "top_logprobs": 20}
        answer = (await d.chat("x", n=4, max_tokens=100, **fields)).json()
        assert [len(one["logprobs"]["content"]) for one in answer["choices"]] == [100] * 4
        streamed = await d.chat("x", n=4, max_tokens=100, stream=True, **fields)
        assert streamed.text.count('"top_logprobs"') == 400
        await d.chat("x", max_tokens=10, **fields)
        assert made_in == [False, True]


async def test_log_probabilities_that_were_said_are_no_objects(monkeypatch):
    """Python's garbage collections would look at each of them, again and again."""
    left = []
    whole = CompletionAnswer.whole

    def seen(self, *args):
        left.append(sum(type(one) is TokenLogprob for one in gc.get_objects()))
        return whole(self, *args)

    monkeypatch.setattr(CompletionAnswer, "whole", seen)

    async def main():
        async with deployment() as d:
            answer = await d.complete(["x", "y"], n=8, max_tokens=100, ignore_eos=True, logprobs=5)
            choices = answer.json()["choices"]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                assert [len(one["logprobs"][name]) for one in choices] == [100] * 16
            for one in choices:
                assert "".join(one["logprobs"]["tokens"]) == one["text"]
            assert left[0] < 100

    await main()


async def test_what_gathered_at_many_choices_is_made_over_many_turns(monkeypatch):
    pushed = [0]
    push = Choice.push

    def counted(self, deltas):
        pushed[-1] += len(deltas)
        return push(self, deltas)

    monkeypatch.setattr(Choice, "push", counted)
    loop = asyncio.get_running_loop()

    def turn():
        nonlocal ticking
        pushed.append(0)
        ticking = loop.call_soon(turn)

    async with deployment() as d:
        ticking = loop.call_soon(turn)
        fields = {"max_tokens": 100, "ignore_eos": True, "stream": True}
        answer = await d.complete([f"{number} is a prompt" for number in range(64)], n=16, **fields)
        ticking.cancel()
        assert answer.text.count('"finish_reason":"length"') == 1_024
        assert sum(pushed) >= 1_024 * 100
        assert max(pushed) < 1_500
