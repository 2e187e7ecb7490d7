"""The shipped demo model as `triptych up examples/epd.yaml` serves it; and what happens when its engine dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from engine_support import Served, descendants

from support.loops import SOON_S

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    graph = tmp_path_factory.mktemp("graph") / "epd.yaml"
    shipped = (ROOT / "examples" / "epd.yaml").read_text()
    # An engine takes longer to come back on a small machine than most clients would wait.
    graph.write_text(shipped.replace("frontend:\n", "frontend:\n  resume-timeout-s: 150\n"))
    deployment = Served(graph, "demo")
    yield deployment
    deployment.stop()


def test_a_thousand_unseen_pictures_as_served(demo: Served) -> None:
    """At least 98 % exact answers; the tool prints what share of each kind was right."""
    _evaluate("--url", demo.url, "--served-model", "demo", "--concurrency", "16")


def test_unseen_videos_as_served(demo: Served) -> None:
    """At least 97 % exact answers."""
    _evaluate("--url", demo.url, "--about", "video", "--count", "300", "--at-least", "0.97")


def test_a_thousand_unseen_pictures_with_transformers() -> None:
    _evaluate()


def test_unseen_videos_with_transformers() -> None:
    _evaluate("--about", "video", "--count", "150", "--at-least", "0.97")


def test_unseen_sounds_as_served() -> None:
    """At least 97 % exact answers of the model that hears, in its own deployment."""
    deployment = Served(ROOT / "examples" / "epd.yaml", "demo-audio")
    try:
        _evaluate("--url", deployment.url, "--about", "sound", "--count", "200", "--at-least", "0.97")
    finally:
        deployment.stop()


def test_the_graph_with_vllms_ec_connector_starts_as_it_is() -> None:
    deployment = Served(ROOT / "examples" / "e-pd-ec-connector.yaml", "demo")
    try:
        _evaluate("--url", deployment.url, "--served-model", "demo", "--count", "100", "--at-least", "0.97")
    finally:
        deployment.stop()


def _evaluate(*flags: str) -> None:
    command = [sys.executable, "-m", "training.evaluate", "--count", "1000", "--at-least", "0.98", *flags]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_dead_engine_is_replaced_and_its_streams_go_on(demo: Served) -> None:
    base = demo.url.removesuffix("/v1")
    body = {
        "model": "demo",
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "max_tokens": 3000,
        "messages": [{"role": "user", "content": "hello"}],
    }
    with (
        httpx.Client(base_url=base, timeout=160) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        events = (line for line in answer.iter_lines() if line)
        assert "chat.completion.chunk" in next(events)
        os.kill(_engine_core(demo.process.pid), signal.SIGKILL)
        *_, last, usage, done = events
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 3000
        assert done == "data: [DONE]"
        whole = http.post(
            "/v1/chat/completions", json={**body, "stream": False, "stream_options": None, "max_tokens": 3}
        )
        assert whole.status_code == 200, whole.text
        assert whole.json()["usage"]["completion_tokens"] == 3


def test_stopping_is_quick_and_leaves_nothing(demo: Served) -> None:
    family = descendants(demo.process.pid)
    assert len(family) >= 3, "a frontend, a worker and its engine are expected to run"
    begun = time.monotonic()
    demo.stop()
    assert time.monotonic() - begun < SOON_S
    left = [Path(f"/proc/{pid}/stat") for pid in family]
    states = [stat.read_text().rpartition(")")[2].split()[0] for stat in left if stat.exists()]
    assert set(states) <= {"Z"}, "only what init has yet to collect may be left"


def _engine_core(pid: int) -> int:
    for child in descendants(pid):
        if re.search(r"EngineCore", Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace")):
            return child
    raise AssertionError("vLLM's engine process was not found")
