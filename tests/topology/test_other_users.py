"""What other users of the machine can do to a deployment and learn of it: nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx
import pytest
from test_up import EXIT_TIMEOUT_S, triptych

from support.deployment import http_client
from support.nats_server import program
from support.processes import child, mock_worker
from triptych.aio.descendants import descendants

NOBODY = 65534
SECRETS = {
    "TRIPTYCH_TOKEN": "token-of-the-plane",
    "TRIPTYCH_API_KEY": "key-of-the-clients",
    "TRIPTYCH_ADMIN_KEY": "key-of-admins",
}

# As another user: what comes back of a call to the worker's port with several greetings, and which files open.
STRANGER = """
import encodings.idna, json, os, socket, sys
import msgspec
from triptych.planes.request.frames import HEADER, VERSION, Challenge, Hello, Type, pack, pack_call
from triptych.planes.request.handshake import key_of, proof
port, right, *paths = json.load(sys.stdin)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def said(token):
    with socket.create_connection(("127.0.0.1", port), 5) as line, line.makefile("rb") as heard:
        try:
            if token is None:
                line.sendall(pack_call(1, "health", b"x"))
            else:
                hello = Hello(VERSION, b"n" * 16 if token else b"")
                line.sendall(pack(Type.HELLO, 0, msgspec.msgpack.encode(hello)))
                proved = b""
                if token:
                    size, kind, _ = HEADER.unpack(heard.read(9))
                    challenge = msgspec.msgpack.decode(heard.read(size), type=Challenge)
                    proved = pack(Type.PROOF, 0, proof(key_of(token), "client", hello, challenge.nonce))
                line.sendall(proved + pack_call(1, "health", b"x"))
            return len(heard.read(9))
        except (ConnectionResetError, BrokenPipeError): return 0
def opens(path):
    try: return bool(open(path, "rb").read(1)) or True
    except OSError: return False
listening = [line.split() for line in open("/proc/net/tcp").readlines()[1:]]
print(json.dumps({
    "found": any(line[1].endswith(":%04X" % port) and line[3] == "0A" for line in listening),
    "said": [said(one) for one in (None, "", "guess")],
    "said to the right token": said(right),
    "opened": [path for path in paths if opens(path)],
}))
"""


async def serving(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(15):
        while (await http.get("/ready")).status_code != 200:
            await asyncio.sleep(0.02)


def as_stranger(port: int, token: str, paths: list[str]) -> dict[str, object]:
    asked = subprocess.run(
        [sys.executable, "-c", STRANGER],
        input=json.dumps([port, token, *paths]),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return dict(json.loads(asked.stdout))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A run directory that others may look into, so that the token's own mode must keep them out."""
    with tempfile.TemporaryDirectory(prefix="triptych-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
async def test_another_user_gets_no_answer_and_reads_no_token(open_folder: Path) -> None:
    run_dir = open_folder
    async with (
        child(*mock_worker(), run_dir=run_dir) as worker,
        child("frontend", "--port", "0", run_dir=run_dir) as frontend,
        http_client(frontend.ready.split()[-1]) as http,
    ):
        await serving(http)  # the two know each other by the token of the run directory
        token = run_dir / "token"
        paths = [f"/proc/{one.pid}/{name}" for one in (worker, frontend) for name in ("environ", "mem", "fd/0")]
        seen = as_stranger(int(worker.ready.rsplit(":", 1)[1]), token.read_text().strip(), [str(token), *paths])
        assert seen["said to the right token"], "the test asks in the right way"
        assert (seen["found"], seen["said"], seen["opened"]) == (True, [0, 0, 0], [])


def shown(pid: int) -> bytes:
    """What other processes can see of one without looking into its memory."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline"))


def ask(url: str, key: str) -> int:
    body = {"model": "demo", "messages": [{"role": "user", "content": "red circle"}], "max_tokens": 5}
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    try:
        with urlopen(Request(f"{url}/chat/completions", json.dumps(body).encode(), headers), timeout=10) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code


def test_no_process_of_a_deployment_shows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program()
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    graph = tmp_path / "graph.yaml"
    workers = [
        {"name": "a", "engine": "mock", "args": ["--start-s", 0.1]},
        {"name": "b", "engine": "mock", "env": {"TRIPTYCH_TOKEN": "token-of-the-plane", "X": "shown"}},
    ]
    graph.write_text(json.dumps({"model": "demo", "plane": "nats", "events": "zmq", "workers": workers}))
    with triptych(tmp_path, "up", str(graph), "--port", "0") as up:
        url = next(word for word in up.read_until("Ctrl-C stops").split() if word.startswith("http://"))
        assert (ask(url, "wrong"), ask(url, SECRETS["TRIPTYCH_API_KEY"])) == (401, 200), "the secrets do their work"

        everyone = [up.process.pid, *descendants(up.process.pid)]
        [server] = [pid for pid in everyone if Path(f"/proc/{pid}/comm").read_text().strip() == "nats-server"]
        config = Path(shown(server).split(b"-c\0")[1].split(b"\0")[0].decode())
        nats_token = config.read_text().split('token: "')[1].split('"')[0]
        assert config.stat().st_mode & 0o077 == 0

        assert len(everyone) == 6
        for pid in everyone:
            for secret in (*SECRETS.values(), nats_token):
                assert secret.encode() not in shown(pid), f"{Path(f'/proc/{pid}/cmdline').read_bytes()} shows {secret}"
        assert any(b"X=shown" in shown(pid) for pid in everyone)
        assert nats_token not in up.errors.read_text()
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(EXIT_TIMEOUT_S) == 0


async def test_processes_with_different_tokens_do_not_meet(tmp_path: Path) -> None:
    async with (
        child(*mock_worker(), run_dir=tmp_path, env={"TRIPTYCH_TOKEN": "one"}),
        child("frontend", "--port", "0", run_dir=tmp_path) as stranger,
        child("frontend", "--port", "0", run_dir=tmp_path, env={"TRIPTYCH_TOKEN": "one"}) as friend,
        http_client(stranger.ready.split()[-1]) as refused,
        http_client(friend.ready.split()[-1]) as served,
    ):
        await serving(served)
        assert (await refused.get("/ready")).status_code == 503
        assert "does not know the token (TRIPTYCH_TOKEN)" in stranger.log.read_text()
