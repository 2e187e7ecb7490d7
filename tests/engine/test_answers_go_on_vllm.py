"""``kill -9`` of a vLLM worker midway: another goes on, and the greedy text is that of transformers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_support import Served, descendants, parts
from ways import VLLM

from support.reference import Reference
from support.sse import parse

MAX_TOKENS, KILLED_AFTER = 300, 40
CONTENTS: dict[str, list[Any]] = {
    "picture": [(1, 140, 112), "What is in this picture?"],
    "text": ["A red circle left of a blue square. " * 4],
}


@pytest.fixture(
    scope="module", params=[("epd", "epd"), pytest.param(("ep", "d", "d"), marks=pytest.mark.full)], ids="-".join
)
def deployed(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    graph = {
        "model": "tiny",
        "served-model-name": "tiny",
        "frontend": {"enable-multimodal": True, "plan-header": True, "resume-timeout-s": 120},
        "workers": [
            {"name": f"w{n}", "instance-name": f"w{n}", "span": span, "engine": "vllm", "args": VLLM, "fallback": False}
            for n, span in enumerate(request.param)
        ],
    }
    path = tmp_path_factory.mktemp("graph") / "graph.yaml"
    path.write_text(json.dumps(graph))
    running = Served(path, checkpoint)
    yield running
    running.stop()


@pytest.mark.parametrize("name", ["picture", pytest.param("text", marks=pytest.mark.full)])
def test_the_text_is_that_of_an_undisturbed_run(deployed: Served, reference: Reference, name: str) -> None:
    """The second time the worker that was killed may not be back yet: then it is waited for."""
    api, local, pictures = parts(CONTENTS[name])
    expected = reference.answer([{"role": "user", "content": local}], pictures, MAX_TOKENS)
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": api}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    before, seen, killed = _resumed(deployed), b"", False
    with (
        httpx.Client(trust_env=False, timeout=150) as client,
        client.stream("POST", f"{deployed.url}/chat/completions", json=body) as answer,
    ):
        for chunk in answer.iter_raw():
            seen += chunk
            if not killed and seen.count(b"data: ") > KILLED_AFTER:
                killed = True
                _kill(deployed, answer.headers["x-triptych-plan"].rpartition("@")[2])
    stream = parse(seen)
    assert stream.error is None, stream.error
    assert stream.text() == reference.text(expected)
    assert stream.usage is not None
    assert stream.usage["completion_tokens"] == len(expected) == MAX_TOKENS
    assert stream.finish_reason() == "length"
    assert _resumed(deployed) == before + 1


def _kill(deployed: Served, name: str) -> None:
    for pid in descendants(deployed.process.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if f"--instance-name={name}".encode() in command:
            for each in (pid, *descendants(pid)):
                os.kill(each, signal.SIGKILL)
            return
    raise AssertionError(f"no process of the worker {name} was found")


def _resumed(deployed: Served) -> float:
    text = httpx.get(deployed.url.removesuffix("/v1") + "/metrics", trust_env=False).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("triptych_requests_resumed_t"))
