"""Two hosts, as network namespaces joined by a wire: NATS and a frontend on one, workers on both, TLS between them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from support.certificates import Authority
from support.checkpoints import image_part, picture_url
from support.deployment import chat_body
from support.nats_server import program

HERE, THERE = "10.77.0.1", "10.77.0.2"
SECRETS = {"TRIPTYCH_TOKEN": "one", "TRIPTYCH_NATS_TOKEN": "two"}
PLANE = f"nats://{HERE}:4222"
ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.stdin.buffer.read(), {"content-type": "application/json"})
with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
    print(answer.headers["x-triptych-plan"])
    print(answer.read().decode())
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_make_hosts() -> bool:
    if os.getuid() or shutil.which("ip") is None:
        return False
    with suppress(subprocess.CalledProcessError):
        ip("netns", "add", probe := f"t{secrets.token_hex(4)}")
        ip("netns", "del", probe)
        return True
    return False


@contextmanager
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces, with the addresses HERE and THERE."""
    names = f"a{secrets.token_hex(4)}", f"b{secrets.token_hex(4)}"
    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        here, there = names
        ip("link", "add", "wire", "netns", here, "type", "veth", "peer", "name", "wire", "netns", there)
        for name, address in ((here, HERE), (there, THERE)):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
            for link in ("lo", "wire"):
                ip("-n", name, "link", "set", link, "up")
        yield here, there


@contextmanager
def running(host: str, folder: Path, *words: str) -> Iterator[None]:
    """``triptych`` with these words, on ``host``, from when it is ready."""
    process = subprocess.Popen(
        ["ip", "netns", "exec", host, sys.executable, "-m", "triptych", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **SECRETS, "TMPDIR": str(folder)},
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "ready" in line:
                break
        else:
            raise AssertionError("".join(lines))
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.mark.skipif(not can_make_hosts(), reason="needs to be root, and `ip netns`")
def test_encode_on_one_host_and_decode_on_the_other(tmp_path: Path) -> None:
    pytest.importorskip("nixl", reason="NIXL is not installed")
    program()
    authority = Authority(tmp_path)
    files = {host: authority.issue(host, (host,)) for host in (HERE, THERE)}
    tls = {
        host: ("--tls-cert", one.cert, "--tls-key", one.key, "--tls-ca", authority.ca) for host, one in files.items()
    }
    worker = ("worker", "--model", "demo", "--engine", "mock", "--plane", PLANE, "--transfer-devices", "all")
    encode = (*worker, "--span", "e", "--name", "enc", "--host", HERE, *tls[HERE])
    decode = (*worker, "--span", "pd", "--name", "dec", "--no-stand-in", "--host", THERE, *tls[THERE])
    with ExitStack() as stack:
        here, there = stack.enter_context(hosts())
        stack.enter_context(running(here, tmp_path, "nats", "--host", HERE))
        stack.enter_context(running(here, tmp_path, *encode))
        stack.enter_context(running(there, tmp_path, *decode))
        frontend = ("frontend", "--host", HERE, "--port", "8000", "--enable-multimodal", "--plan-header", *tls[HERE])
        stack.enter_context(running(here, tmp_path, *frontend, "--plane", PLANE))
        for colour in ("red", "blue", "green"):
            content = [image_part(picture_url(colour=colour)), {"type": "text", "text": "hello"}]
            answer = subprocess.run(
                ["ip", "netns", "exec", there, sys.executable, "-c", ASK, f"http://{HERE}:8000/v1/chat/completions"],
                input=json.dumps(chat_body(content)).encode(),
                capture_output=True,
                check=True,
            )
            plan, body = answer.stdout.decode().split("\n", 1)
            assert [step.split("-")[0] for step in plan.split()] == ["e@enc", "pd@dec"]
            assert "hello" in json.loads(body)["choices"][0]["message"]["content"]
