"""Hosts, as network namespaces joined to one switch, and processes on them that share nothing else either.

A network namespace alone would not do: UCX and our own transfers look for process ids, and for shared memory, and would
find each other past the wire.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.certificates import Authority
from support.nats_server import program
from support.processes import CLEAN

NETWORK = "10.77.0"
SECRETS = {"TRIPTYCH_TOKEN": "one", "TRIPTYCH_NATS_TOKEN": "two"}
ALONE = ["unshare", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
OWN_SHM = 'mount -t tmpfs none /dev/shm && exec "$@"'
ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.stdin.buffer.read(), {"content-type": "application/json"})
with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
    print(answer.headers["x-triptych-plan"])
    print(answer.read().decode())
"""


class Host(NamedTuple):
    namespace: str
    address: str

    def command(self, *words: str) -> list[str]:
        """To run ``words`` on this host, in a world of their own."""
        return ["ip", "netns", "exec", self.namespace, *ALONE, "sh", "-c", OWN_SHM, "sh", *words]

    def received_bytes(self) -> int:
        """By its wire, since it was made."""
        shown = json.loads(_ip("-n", self.namespace, "-s", "-j", "link", "show", "wire"))
        return int(shown[0]["stats64"]["rx"]["bytes"])


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def can_make_hosts() -> bool:
    if os.getuid() or not all(map(shutil.which, ("ip", "unshare"))):
        return False
    with suppress(subprocess.CalledProcessError), hosts(1) as [one]:
        return subprocess.run(one.command("true"), capture_output=True, check=False).returncode == 0
    return False


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Of addresses in one network. Needs root."""
    name = f"t{secrets.token_hex(4)}"
    made = [Host(f"{name}-{place}", f"{NETWORK}.{place}") for place in range(1, count + 1)]
    with ExitStack() as stack:
        for namespace in (name, *(host.namespace for host in made)):
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "del", namespace)
        _ip("-n", name, "link", "add", "switch", "type", "bridge")
        _ip("-n", name, "link", "set", "switch", "up")
        for place, host in enumerate(made):
            wire = ("link", "add", f"port{place}", "netns", name, "type", "veth")
            _ip(*wire, "peer", "name", "wire", "netns", host.namespace)
            _ip("-n", name, "link", "set", f"port{place}", "up", "master", "switch")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "wire")
            for link in ("lo", "wire"):
                _ip("-n", host.namespace, "link", "set", link, "up")
        yield made


class Running:
    """``triptych`` with some words, on a host."""

    def __init__(self, host: Host, folder: Path, words: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            host.command(sys.executable, "-m", "triptych", *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**CLEAN, **SECRETS, "TMPDIR": str(folder)},
        )
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if line.startswith("triptych: ready"):
                self._ready.set()
        self._ready.set()

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def wait_until_ready(self) -> None:
        self._ready.wait()
        assert "triptych: ready" in self.said, self.said

    def stop(self) -> None:
        """As SIGTERM does it: a drain. The process is the one child of what put it into its namespaces."""
        pid = self._process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)
        try:
            self._process.wait(20)
        finally:
            self._process.kill()  # with it goes what did not end by itself
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process.wait()


class Site:
    """Hosts with a NATS server on the first of them, and what is started there, with TLS between them."""

    def __init__(self, made: list[Host], folder: Path, stack: ExitStack) -> None:
        self.hosts = made
        self._folder = folder
        self._stack = stack
        self._authority = Authority(folder)
        self._certificates = {host: self._authority.issue(host.address, (host.address,)) for host in made}
        self.start(made[0], "nats", "--host", made[0].address).wait_until_ready()
        self._plane = ("--plane", f"nats://{made[0].address}:4222")

    def start(self, host: Host, *words: str) -> Running:
        """It ends with the site."""
        folder = self._folder / secrets.token_hex(4)
        folder.mkdir()
        one = Running(host, folder, words)
        self._stack.callback(one.stop)
        return one

    def _meeting(self, host: Host) -> tuple[str, ...]:
        """How a process on ``host`` finds the others, and is known to them."""
        cert, key = self._certificates[host]
        return (
            "--host",
            host.address,
            *self._plane,
            "--tls-cert",
            cert,
            "--tls-key",
            key,
            "--tls-ca",
            self._authority.ca,
        )

    def worker(self, host: Host, name: str, *words: str, engine: tuple[str, ...] = ()) -> Running:
        """``engine`` holds the engine's own flags."""
        return self.start(host, "worker", "--name", name, *self._meeting(host), *words, "--", *engine)

    def frontend(self, host: Host) -> None:
        """Until it is ready."""
        flags = ("--port", "8000", "--enable-multimodal", "--plan-header")
        self.start(host, "frontend", *self._meeting(host), *flags).wait_until_ready()

    def chat(self, client: Host, server: Host, body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The answer that ``client`` gets from the frontend on ``server``, and whom its plan names."""
        answer = subprocess.run(
            client.command(sys.executable, "-c", ASK, f"http://{server.address}:8000/v1/chat/completions"),
            input=json.dumps(body).encode(),
            capture_output=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr.decode()
        plan, text = answer.stdout.decode().split("\n", 1)
        return json.loads(text), [step.rsplit("-", 1)[0] for step in plan.split()]


@contextmanager
def site(count: int, folder: Path) -> Iterator[Site]:
    """Skips the test where there cannot be one."""
    pytest.importorskip("nixl", reason="NIXL is not installed")
    program()
    if not can_make_hosts():
        pytest.skip("needs to be root, `ip netns` and `unshare`")
    with ExitStack() as stack:
        yield Site(stack.enter_context(hosts(count)), folder, stack)
