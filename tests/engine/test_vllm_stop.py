"""Stops of vLLM workers: quick without requests, and none of its processes ends before what is in flight."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from engine_support import Served

from support.deployment import chat_body, http_client
from support.loops import SOON_S
from support.processes import child
from support.sse import parse
from triptych.demo import MODEL_DIR
from triptych.engines.vllm.start_lines import PHASES
from triptych.runtime.engine_log import KEPT_IN

WORKER = ("worker", "--model", "demo", "--engine", "vllm", "--transfer", "shm", "--", "--max-model-len", "2048")


@pytest.mark.timeout(300)
def test_an_idle_deployment(tmp_path: Path) -> None:
    graph = tmp_path / "graph.yaml"
    graph.write_text("workers: [{span: epd, args: [--max-model-len, 2048]}]\n")
    served = Served(graph, MODEL_DIR, "--served-model-name", "tiny")
    assert served.ask([{"type": "text", "text": "red"}], 3)
    begun = time.monotonic()
    assert served.stop() == 0, "\n".join(served.lines)
    assert time.monotonic() - begun < SOON_S


def assert_start_was_told(said: str) -> None:
    """In real phases; what vLLM writes is in the file, with the lines that phases begin with on this machine."""
    for phase in ("loading the engine (vllm)", "starting the engine's process"):
        assert f"s: {phase} (" in said
    path = next(Path(line.split(KEPT_IN)[1].strip()) for line in said.splitlines() if KEPT_IN in line)
    written = path.read_text()
    for begun in ("Initializing a V1", "Starting to load", "Loading weights took", "KV cache size:", "init engine"):
        [marker] = [text for text, _ in PHASES if text.startswith(begun)]
        assert marker in written
    assert "Starting to load" not in said


@pytest.mark.timeout(300)
@pytest.mark.event_loop(limit_s=280)
async def test_a_terminal_s_ctrl_c_lets_an_answer_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches all processes of the group at once, the engine's too."""
    monkeypatch.setattr("support.processes.READY_S", 240.0)
    async with (
        child(*WORKER, run_dir=tmp_path, process_group=0) as worker,
        child("frontend", "--port", "0", run_dir=tmp_path) as frontend,
        http_client(frontend.ready.split()[-1]) as http,
    ):
        async with asyncio.timeout(30):
            while (await http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.05)
        assert_start_was_told(worker.log.read_text())
        body = chat_body("x", stream=True, ignore_eos=True, max_tokens=600)
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            events = answer.aiter_raw()
            seen = await anext(events)
            os.killpg(worker.pid, signal.SIGINT)
            stream = parse(seen + b"".join([chunk async for chunk in events]))
        assert (stream.error, stream.finish_reason()) == (None, "length"), worker.log.read_text()
        assert await worker.ended() == 0
