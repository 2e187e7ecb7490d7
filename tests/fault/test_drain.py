"""SIGTERM: what is in flight finishes, new requests go elsewhere, and the deadline holds."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from test_worker_dies import _instances, check_unavailable, reading

from support.deployment import chat_body, deployment, http_client
from support.processes import child, mock_worker
from support.sse import parse


async def test_a_worker_finishes_what_it_has():
    async with deployment(workers=0) as d:  # noqa: SIM117 (reads better with the child inside)
        async with child(*mock_worker(engine=("--itl-ms", "10")), run_dir=d.run_dir) as worker:
            await d.ready()
            body = chat_body("x", stream=True, ignore_eos=True, max_tokens=60)
            async with d.http.stream("POST", "/v1/chat/completions", json=body) as answer:
                events = answer.aiter_raw()
                seen = await reading(events)
                worker.signal(signal.SIGTERM)
                await d.ready(False)
                check_unavailable(await d.chat("new"))
                stream = parse(seen + b"".join([chunk async for chunk in events]))
            assert stream.error is None
            assert stream.finish_reason() == "length"
            assert stream.done
            assert await worker.ended() == 0


async def test_new_requests_go_to_another_worker_with_no_error_seen():
    async with deployment(workers=2, engine_args=("--itl-ms", "2")) as d:
        stopping = d.workers[0]

        async def asking(number):
            return [(await d.chat(f"{number} {turn}")).status_code for turn in range(6)]

        tasks = [asyncio.create_task(asking(number)) for number in range(8)]
        await stopping.made(20)
        await stopping.drain()
        assert await asyncio.gather(*tasks) == [[200] * 6] * 8
        assert stopping.task.exception() is None


async def test_a_worker_that_cannot_finish_in_time_says_so():
    async with deployment(engine_args=("--itl-ms", "10"), drain_timeout_s=0.3) as d:
        body = chat_body("x", stream=True, ignore_eos=True, max_tokens=4000)
        async with d.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            events = answer.aiter_raw()
            seen = await reading(events)
            begun = time.monotonic()
            await d.worker.drain()
            assert time.monotonic() - begun > 0.2, "it waited for what it has"
            stream = parse(seen + b"".join([chunk async for chunk in events]))
        assert stream.error["code"] == "worker_lost", "never a silent end"
        assert stream.done


async def test_a_frontend_finishes_what_it_has_and_ends():
    async with deployment(workers=0) as d:
        await d.add_worker(engine_args=("--itl-ms", "10"))
        async with child("frontend", "--port", "0", run_dir=d.run_dir) as frontend:
            url = frontend.ready.split()[-1]
            async with http_client(url) as http:
                body = chat_body("x", stream=True, ignore_eos=True, max_tokens=60)
                async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    events = answer.aiter_raw()
                    seen = await reading(events)
                    frontend.signal(signal.SIGTERM)
                    stream = parse(seen + b"".join([chunk async for chunk in events]))
                assert (stream.error, stream.finish_reason(), stream.done) == (None, "length", True)
            assert await frontend.ended() == 0
        await d.worker.idle()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_frontend_that_cannot_finish_in_time_tells_the_client_and_the_worker(stream):
    body = chat_body("x", stream=stream, ignore_eos=True, max_tokens=4000)
    async with deployment(workers=0) as d:
        await d.add_worker(engine_args=("--itl-ms", "10"))
        async with child("frontend", "--port", "0", "--drain-timeout-s", "1", run_dir=d.run_dir) as frontend:
            async with http_client(frontend.ready.split()[-1]) as http:
                asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
                await d.worker.made(5)
                frontend.signal(signal.SIGTERM)
                answer = await asking
            if stream:
                parsed = parse(answer.content)
                assert parsed.error["code"] == "shutting_down", "never a silent end"
                assert parsed.done
            else:
                assert check_unavailable(answer)["code"] == "shutting_down"
            assert await frontend.ended() == 0
        await d.worker.idle()


async def test_an_idle_frontend_and_worker_end_at_once():
    """No drain time is waited out with nothing to drain."""
    async with deployment(workers=0) as d:
        async with (
            child(*mock_worker("--drain-timeout-s", "600"), run_dir=d.run_dir) as worker,
            child("frontend", "--port", "0", "--drain-timeout-s", "600", run_dir=d.run_dir) as frontend,
        ):
            await d.ready()
            async with http_client(frontend.ready.split()[-1]) as http:
                assert (await http.get("/live")).status_code == 200
                for one in (frontend, worker):
                    one.signal(signal.SIGINT if one is worker else signal.SIGTERM)
                    assert await one.ended() == 0
        await _instances(d, 0)
