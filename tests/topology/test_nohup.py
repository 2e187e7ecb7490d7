"""A deployment under ``nohup``, at all loopback addresses of the machine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from support.processes import CLEAN, child, mock_worker
from triptych.aio.descendants import descendants

GRAPH = str(Path(__file__).parents[2] / "examples" / "mock.yaml")
HUP = 1 << (signal.SIGHUP - 1)


def minds_hup(pid: int) -> str:
    """The name of a process that SIGHUP ends. nats-server handles it: it reads its settings again."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    name = status["Name"].strip()
    heeded = "SigCgt" if name == "nats-server" else "SigIgn"
    return "" if int(status[heeded], 16) & HUP else Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[-300:]


def loopbacks() -> list[str]:
    found = ["127.0.0.1"]
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
            found.append("[::1]")
    except OSError:
        pass
    return found


async def serves(port: int) -> None:
    for host in loopbacks():
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False, verify=False) as http:
            answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "red", "max_tokens": 4})
            assert answer.status_code == 200, answer.text


async def test_no_process_minds_sighup_under_nohup_and_both_families_are_served(tmp_path):
    words = ("up", GRAPH, "--host", "localhost", "--port", "0", "--plane", "nats")
    with (
        (tmp_path / "err").open("w") as errors,
        subprocess.Popen(
            ["nohup", sys.executable, "-m", "triptych", *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**CLEAN, "TMPDIR": str(tmp_path)},
        ) as up,
    ):
        try:
            line = next((line for line in up.stdout if "Serving" in line), "")
            assert line, (tmp_path / "err").read_text()
            port = int(line.split("/v1")[0].rpartition(":")[2])
            processes = [up.pid, *descendants(up.pid)]
            assert len(processes) >= 5, "up, frontend, worker, nats and its server"
            assert [name for pid in processes if (name := minds_hup(pid))] == []
            for pid in processes:
                os.kill(pid, signal.SIGHUP)
            await serves(port)
            assert {up.pid, *descendants(up.pid)} >= set(processes)
        finally:
            up.send_signal(signal.SIGTERM)
        assert up.wait(15) == 0


@pytest.mark.skipif(len(loopbacks()) < 2, reason="this machine has no IPv6")
async def test_processes_meet_at_an_ipv6_address(tmp_path):
    """By hand, with the brackets that URLs have, and without."""
    async with (
        child("frontend", "--host", "[::1]", "--port", "0", run_dir=tmp_path) as frontend,
        child(*mock_worker("--host", "::1"), run_dir=tmp_path) as worker,
    ):
        url = frontend.ready.split()[-1]
        assert url.startswith("http://[::1]:")
        assert " at [::1]:" in worker.ready
        async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as http, asyncio.timeout(15):
            while (await http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.02)
            body = {"model": "demo", "prompt": "red", "max_tokens": 4}
            assert (await http.post("/v1/completions", json=body)).status_code == 200
            health = (await http.get("/health")).json()
        assert health["models"]["demo"]["instances"][0]["address"].startswith("[::1]:")


def test_a_worker_whose_port_is_taken_says_so_before_its_engine_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = mock_worker("--port", port, "--run-dir", str(tmp_path), engine=("--start-s", "600"))
        ended = subprocess.run(
            [sys.executable, "-m", "triptych", *words], capture_output=True, text=True, env=CLEAN, timeout=60
        )
    assert ended.returncode == 2
    assert f"triptych: error: port {port} on 127.0.0.1 is taken; choose another with --port" in ended.stderr


async def test_a_closed_terminal_stops_a_worker_that_has_nixl(tmp_path):
    """UCX, left alone, takes the signal away."""
    async with child(*mock_worker("--span", "pd"), run_dir=tmp_path) as worker:
        worker.signal(signal.SIGHUP)
        assert await worker.ended() == 0
