"""A deployment without requests stops within 5 s, on every plane, also while clients are connected."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.processes import CLEAN

LIMIT_S = 5.0


@pytest.mark.parametrize(
    ("plane", "number", "send"),
    [
        pytest.param("local", signal.SIGTERM, os.kill, id="local, SIGTERM"),
        pytest.param("nats", signal.SIGINT, os.killpg, id="nats, Ctrl-C"),
    ],
)
def test_stages_apart_on_the_mock_engine(
    tmp_path: Path, plane: str, number: signal.Signals, send: Callable[[int, int], None]
) -> None:
    graph = tmp_path / "graph.yaml"
    workers = [{"span": span, "engine": "mock"} for span in ("e", "p", "d")]
    graph.write_text(json.dumps({"model": "demo", "plane": plane, "frontend": {"port": 0}, "workers": workers}))
    process = subprocess.Popen(
        [sys.executable, "-m", "triptych", "up", str(graph)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**CLEAN, "TMPDIR": str(tmp_path)},
        process_group=0,
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("Serving "))
        url = urlsplit(next(word for word in line.split() if word.startswith("http://")))
        client = http.client.HTTPConnection(url.netloc, timeout=10)
        client.request("GET", "/health")
        assert client.getresponse().read(), "the connection stays open"

        begun = time.monotonic()
        send(process.pid, number)
        assert process.wait(30) == 0
        took_s = time.monotonic() - begun
        client.close()
        assert took_s < LIMIT_S
        assert [path.name for path in tmp_path.iterdir()] == ["graph.yaml"]
    finally:
        process.kill()
        process.communicate()
