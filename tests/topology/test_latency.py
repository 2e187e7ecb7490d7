"""No stall on the way of a token: kept connections, small writes."""

from __future__ import annotations

import json
import statistics
import time

from support.deployment import chat_body, deployment
from support.raw_http import connected, post, response
from support.sse import parse


async def test_streams_on_one_kept_connection_do_not_wait_for_acknowledgements(demo):
    """With Nagle's algorithm against delayed acknowledgements, each of these would take 40 ms and more."""
    body = json.dumps(chat_body("hello", stream=True)).encode()
    took = []
    async with connected(demo.deployed.port) as (reader, writer):
        for _ in range(20):
            begun = time.perf_counter()
            writer.write(post("/v1/chat/completions", body))
            status, _, events = await response(reader)
            took.append(time.perf_counter() - begun)
            assert status == 200
            assert parse(events).done
    median_ms = statistics.median(took) * 1000
    assert median_ms < 25, f"a median of {median_ms:.1f} ms a request; well under 40 ms was expected"


async def test_tokens_come_when_they_are_made():
    """With 20 ms between tokens, the first event comes long before the last."""
    async with deployment(engine_args=("--itl-ms", "20")) as d, connected(d.port) as (reader, writer):
        body = json.dumps(chat_body("x", stream=True, ignore_eos=True, max_tokens=20)).encode()
        begun = time.perf_counter()
        writer.write(post("/v1/chat/completions", body))
        await reader.readuntil(b"data: ")
        first = time.perf_counter() - begun
        await reader.readuntil(b"[DONE]")
        last = time.perf_counter() - begun
        assert last > 0.3, "the mock takes its time"
        assert first < last / 2, f"first event after {first:.3f} s, last after {last:.3f} s"
