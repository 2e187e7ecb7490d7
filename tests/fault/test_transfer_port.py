"""Who reaches a worker's transfers: on one host nobody, as they have no port; across hosts a peer, who may end it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from support import listeners
from support.checkpoints import image_part, picture_url
from support.deployment import chat_body, deployment
from support.hosts import Host, Running, can_make_hosts, hosts
from support.loops import until, until_async
from support.processes import child, mock_worker

pytestmark = pytest.mark.skipif(find_spec("nixl") is None, reason="NIXL is not installed")
STAGES = {"enc": "e", "pre": "p", "dec": "d"}


def looking(colour: str) -> dict[str, object]:
    return chat_body([image_part(picture_url(colour=colour)), {"type": "text", "text": "hello"}])


async def test_on_one_host_only_the_request_plane_listens() -> None:
    """Whatever is sent there, and to the sockets that wake UCX, the workers go on handing tensors over."""
    async with deployment(workers=0, frontend={"plan_header": True}) as d, AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(child(*mock_worker("--name", name, "--span", span), run_dir=d.run_dir))
            for name, span in STAGES.items()
        ]

        async def handed_over(colour: str) -> bool:
            answer = await d.http.post("/v1/chat/completions", json=looking(colour))
            return answer.status_code == 200 and all(name in answer.headers["x-triptych-plan"] for name in STAGES)

        await until_async(lambda: handed_over("red"), "the three workers answer together")
        for worker in workers:
            told = worker.ready.rsplit(" ", 1)[1].strip()
            assert listeners.tcp(worker.pid) == {told}, "its request plane, and nothing else"
            listeners.send_junk({told}, listeners.datagram(worker.pid))
        assert await handed_over("blue")
        assert [worker.process.poll() for worker in workers] == [None, None, None]


GRAPH = """
model: demo
frontend: {enable-multimodal: true, plan-header: true, port: 8000}
workers:
  - {name: enc, span: e, engine: mock, transfer-devices: wire}
  - {name: dec, span: pd, engine: mock, transfer-devices: wire, fallback: false}
"""
POISON = f"""
import socket, sys
for port in sys.argv[2:]:
    with socket.create_connection((sys.argv[1], int(port)), timeout=5) as connection:
        connection.sendall({listeners.UCX_POISON!r})
        connection.recv(1)
"""


def on(host: Host, *words: str) -> str:
    return subprocess.run(
        ["ip", "netns", "exec", host.namespace, *words], check=True, capture_output=True, text=True
    ).stdout


def ports(host: Host) -> list[str]:
    """Of listeners at the host's address; there are others on its loopback only."""
    found = [line.split()[3].rpartition(":") for line in on(host, "ss", "-Htln").splitlines()]
    assert {address for address, _, _ in found} <= {host.address, "127.0.0.1"}
    return [port for address, _, port in found if address == host.address]


ASK = """
import json, sys, urllib.request
body = json.loads(sys.stdin.read())
request = urllib.request.Request(sys.argv[1], json.dumps(body).encode(), {"content-type": "application/json"})
try:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        print(answer.status, answer.headers["x-triptych-plan"])
except OSError as error:
    print(error)
"""


def asked(host: Host, colour: str) -> str:
    """Status and plan of a request with a picture, on the host itself."""
    return subprocess.run(
        ["ip", "netns", "exec", host.namespace, sys.executable, "-c", ASK, "http://127.0.0.1:8000/v1/chat/completions"],
        input=json.dumps(looking(colour)),
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.mark.event_loop(limit_s=55)
async def test_across_hosts_a_peer_may_end_workers_which_then_come_back(tmp_path: Path) -> None:
    """Anybody on the network of the device that was named; as docs/multi-host.md says."""
    if not can_make_hosts():
        pytest.skip("needs to be root, `ip netns` and `unshare`")
    (tmp_path / "graph.yaml").write_text(GRAPH)

    async def main(here: Host, there: Host) -> None:
        def works(colour: str) -> bool:
            return asked(here, colour).startswith("200 e@enc")

        await until(lambda: works("red"), "both workers answer together", 30)
        before = ports(here)
        assert len(before) == 2, "one for each worker's transfers, at the device that was named"
        on(there, sys.executable, "-c", POISON, here.address, *before)
        await until(lambda: up.said.count("exited") >= 2 or not set(ports(here)) & set(before), "the workers end", 20)
        await until(lambda: len(ports(here)) == 2 and works("blue"), "both are started again, and answer", 40)

    with hosts(2) as [here, there]:
        up = Running(here, tmp_path, ("up", str(tmp_path / "graph.yaml"), "--run-dir", str(tmp_path / "run")))
        try:
            await main(here, there)
        finally:
            up.stop()
