"""No stall on the way of a token: kept connections, small writes."""

from __future__ import annotations

import json
import time

from support.deployment import chat_body, deployment
from support.raw_http import connected, post, response
from support.sse import parse

BODY_OF_MANY = json.dumps(chat_body("x", stream=True, ignore_eos=True, max_tokens=1000)).encode()


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
    least_ms = min(took) * 1000
    assert least_ms < 25, f"{least_ms:.1f} ms for the fastest request; well under 40 ms was expected"


async def test_tokens_come_when_they_are_made():
    """The first reaches the client while the worker has not made the last."""
    async with deployment(engine_args=("--itl-ms", "20")) as d, connected(d.port) as (reader, writer):
        writer.write(post("/v1/chat/completions", BODY_OF_MANY))
        await reader.readuntil(b"data: ")
        assert d.worker.engine.stats().generated_tokens < 1000
