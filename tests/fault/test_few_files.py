"""A frontend that may open few files serves on, whatever connections silent and stalled clients hold."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

from support.deployment import chat_body
from support.http_server import get, reading_nothing
from support.loops import until_async
from support.processes import child, mock_worker
from support.raw_http import connected, post, response

CHAT = "/v1/chat/completions"
ENDLESS = {"ignore_eos": True, "max_tokens": 4000, "stream": True}
LIMIT_S = 2.0
"""For one question, on a machine that does much else."""
OPENINGS = {
    "silent": (b"", 200),
    "half a head": (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n", 200),
    "idle": (get("/live"), 200),
    "half a body": (post(CHAT, b"{" * 1000)[:-500], 100),
    "stalled": (post(CHAT, json.dumps(chat_body("x " * 200, **ENDLESS)).encode()), 64),
}
LETS_OTHERS_IN = ("silent", "half a head", "idle")


async def asked(port: int, request: bytes) -> int:
    async with asyncio.timeout(LIMIT_S), connected(port) as (reader, writer):
        writer.write(request)
        return (await response(reader))[0]


async def test_with_few_files(tmp_path):
    words = ("frontend", "--port", "0", "--send-timeout-s", "2")
    hello = post(CHAT, json.dumps(chat_body()).encode())
    async with (
        child(*mock_worker(engine=("--itl-ms", "10")), run_dir=tmp_path),
        child(*words, run_dir=tmp_path, max_files=64) as frontend,
    ):
        port = int(frontend.ready.rsplit(":", 1)[1])

        async def answers():
            return await asked(port, hello) == 200

        await until_async(answers, "it serves")
        for name, (opening, count) in OPENINGS.items():
            async with AsyncExitStack() as stack:
                for _ in range(count):
                    await stack.enter_async_context(reading_nothing(port, opening))
                for path in ("/live", "/ready", "/metrics"):
                    assert await asked(port, get(path)) == 200, f"{path} beside {name}"
                if name in LETS_OTHERS_IN:
                    assert await asked(port, hello) == 200, f"beside {name}"
            await until_async(answers, f"all is as before {name}")
        assert "Traceback" not in frontend.log.read_text()
