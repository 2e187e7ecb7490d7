"""A client that goes away, or does not read: its work ends, its memory is bounded, nobody else suffers."""

from __future__ import annotations

import asyncio
import json
import re
import socket

import pytest

from support.deployment import chat_body, deployment
from support.http_server import reading_nothing
from support.loops import until, until_async
from support.raw_http import connected, post
from support.sse import parse
from triptych.frontend.openai.unsent import LOGPROB_BYTES, MAX_UNSENT_TOKENS

CHAT = "/v1/chat/completions"
ENDLESS = {"ignore_eos": True, "max_tokens": 4000}


def endless(**fields):
    return post(CHAT, json.dumps(chat_body("x", **ENDLESS, **fields)).encode())


async def gone(deployed):
    """Nothing is left of any request: neither in the engine, nor in the frontend."""
    for worker in deployed.workers:
        await worker.idle()
    await until(lambda: not deployed.dispatcher.in_flight, "the dispatcher's account is at zero")

    async def over():
        return (await deployed.http.get("/health")).json()["requests_in_flight"] == 0

    await until_async(over, "nothing is being answered but this question")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
async def test_while_tokens_are_made(stream, n):
    async with deployment(engine_args=("--itl-ms", "5")) as d:
        async with connected(d.port) as (_, writer):
            writer.write(endless(stream=stream, n=n))
            await d.worker.busy(n)
            await d.worker.made(2)
        await gone(d)
        made = d.worker.engine.stats().generated_tokens
        assert made < 1000, "the engine was stopped long before the end"
        metrics = (await d.http.get("/metrics")).text
        assert 'triptych_requests_cancelled_total{model="demo"} 1.0' in metrics


@pytest.mark.parametrize("stream", [True, False])
async def test_before_the_first_token(stream):
    async with deployment(engine_args=("--prefill-ms", "30000")) as d:
        async with connected(d.port) as (_, writer):
            writer.write(endless(stream=stream))
            await d.worker.busy()
        await gone(d)
        assert d.worker.engine.stats().generated_tokens == 0


async def test_a_closed_writing_side_is_a_client_that_left():
    """Half-closed: no server can tell it from gone, and httptools' does not serve it either."""
    async with deployment(engine_args=("--itl-ms", "5")) as d, connected(d.port) as (_, writer):
        writer.write(endless(stream=True))
        await d.worker.made(2)
        writer.write_eof()
        await gone(d)


async def test_many_that_leave_at_different_times():
    async with deployment(workers=2, engine_args=("--prefill-ms", "5", "--itl-ms", "2")) as d:

        async def leaves(number):
            async with connected(d.port) as (reader, writer):
                writer.write(endless(stream=number % 2 == 0, n=1 + number % 2))
                try:
                    async with asyncio.timeout(0.005 * (number % 12)):
                        await reader.read(1 << 20)
                        await reader.read(1 << 20)
                except TimeoutError:
                    pass

        async def stays(number):
            answer = await d.chat(f"stay {number}", stream=True)
            assert parse(answer.content).text() == f"user\nstay {number}\nassistant\n"

        await asyncio.gather(*(leaves(n) for n in range(40)), *(stays(n) for n in range(10)))
        await gone(d)


async def test_a_client_that_does_not_read_is_waited_for_not_buffered():
    async with deployment(engine_args=("--max-model-len", "2000000")) as d:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", d.port))
            body = json.dumps(chat_body("x", stream=True, ignore_eos=True, max_tokens=1_000_000)).encode()
            slow.sendall(post(CHAT, body))
            await d.worker.made(100)
            made = await _settled(lambda: d.worker.engine.stats().generated_tokens)
            assert made < 60_000, "the engine waits for the client: some 30 KB are on the way, not all of it"
            answers = await asyncio.gather(*(d.chat(f"{n}") for n in range(10)))
            assert [answer.status_code for answer in answers] == [200] * 10, "others are served meanwhile"
        await gone(d)


async def test_the_engines_places_of_clients_that_do_not_read_come_free():
    """So many choices of one answer, each of which could be megabytes that nobody takes."""
    frontend = {"send_timeout_s": 0.5, "max_running": 8}
    async with deployment(engine_args=("--max-model-len", "2000000"), frontend=frontend) as d:
        fields = {"stream": True, "ignore_eos": True, "max_tokens": 1_000_000}
        request = post(CHAT, json.dumps(chat_body("x", n=4, logprobs=True, top_logprobs=20, **fields)).encode())
        async with reading_nothing(d.port, request), reading_nothing(d.port, request):
            await d.worker.busy(8)

            async def counted():
                return held_bytes((await d.http.get("/metrics")).text) > 8 * max_unsent

            max_unsent = MAX_UNSENT_TOKENS * 21 * LOGPROB_BYTES
            await until_async(counted, "what waits for them is counted")
            assert (await d.chat("hello")).status_code == 200, "it had its turn, once theirs was over"
            await gone(d)
        metrics = (await d.http.get("/metrics")).text
        assert "triptych_http_connections_timed_out_send_total 2.0" in metrics
        assert 'triptych_requests_cancelled_total{model="demo"} 2.0' in metrics
        assert held_bytes(metrics) == 0


async def test_log_probabilities_of_whole_answers_are_counted():
    async with deployment(frontend={"max_held_bytes": 300_000}) as d:
        fields = {"ignore_eos": True, "logprobs": True, "top_logprobs": 20}
        assert (await d.chat("x", max_tokens=50, **fields)).status_code == 200
        answer = await d.chat("x", max_tokens=400, **fields)
        assert answer.status_code in (413, 429)
        assert "--max-held-bytes" in answer.text
        await gone(d)


def held_bytes(metrics):
    return float(re.search(r"^triptych_held_bytes (\S+)$", metrics, re.MULTILINE)[1])


async def _settled(value):
    """The value once it has not moved for a while."""
    last, same = value(), 0
    while same < 20:
        await asyncio.sleep(0.01)
        same, last = (same + 1, last) if value() == last else (0, value())
    return last


async def test_a_slow_request_body_holds_up_nobody():
    async with deployment() as d:
        async with connected(d.port) as (_, writer):
            writer.write(endless()[:60])
            await writer.drain()
            assert (await d.chat()).status_code == 200
        await gone(d)
