"""Runs the nats-server of its PyPI package, with JetStream in memory, for as long as this process lives."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from triptych.aio import leftovers
from triptych.contracts.errors import ConfigError
from triptych.planes.run_dir import make

PROGRAM = "nats-server"
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 2.0
POLL_S = 0.02
MEMORY_BYTES = 256 << 20
"""The limit for all buckets and streams of all namespaces together."""
KEPT_LINES = 5

_PR_SET_PDEATHSIG = 1
_QUIET = ("[INF]", "[DBG]", "[TRC]")


class NatsServer:
    """A running server."""

    def __init__(self, process: asyncio.subprocess.Process, write_line: Callable[[str], None]) -> None:
        self._process = process
        self._write_line = write_line
        self._last: deque[str] = deque(maxlen=KEPT_LINES)
        self._reading = asyncio.create_task(self._read(), name="nats-server's output")
        self.url = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> str:
        """Waits until the server ends by itself. Returns its status and its last lines."""
        status = await self._process.wait()
        await asyncio.wait({self._reading})  # the last lines may come after the status
        return f"{PROGRAM} ended with status {status}" + "".join(f"; {line}" for line in self._last)

    async def _read(self) -> None:
        """Logs the server's warnings and errors until its output ends."""
        assert self._process.stderr is not None
        async for raw in self._process.stderr:
            line = raw.decode(errors="replace").strip()
            if line and not any(mark in line for mark in _QUIET):
                self._last.append(line)
                self._write_line(line)

    async def listening(self, folder: Path) -> None:
        """Waits for the file that the server writes once it listens. Raises ConfigError."""
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while asyncio.get_running_loop().time() < deadline:
            if self._process.returncode is not None:
                raise ConfigError(await self.ended())
            if url := _announced(folder):
                self.url = url
                return
            await asyncio.sleep(POLL_S)
        raise ConfigError(f"{PROGRAM} does not listen after {START_TIMEOUT_S:g} s")

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._reading


@asynccontextmanager
async def nats_server(
    host: str, port: int, token: str | None, run_dir: Path, write_line: Callable[[str], None]
) -> AsyncIterator[NatsServer]:
    """Runs a server on ``host`` and ``port`` (0: a free one) within the block. Clients need ``token``.

    Raises ConfigError if the program is missing, or does not start.
    """
    program = _program()
    leftovers.remove_abandoned(make(run_dir))
    with leftovers.PrivateFolder("nats-", run_dir) as private:
        folder = private.path
        config = folder / "nats-server.conf"
        config.touch(mode=0o600)  # it holds the token
        config.write_text(_configuration(host, port, token, folder), encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            program,
            "-c",
            str(config),
            "--ports_file_dir",
            str(folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=_end_with_parent,
            start_new_session=True,  # a terminal's signals go to its parent, which then ends it
        )
        server = NatsServer(process, write_line)
        try:
            await server.listening(folder)
            yield server
        finally:
            await server.stop()


def _program() -> str:
    """Returns the program's path: beside this Python, where pip installs it, else on ``PATH``."""
    found = shutil.which(PROGRAM, path=str(Path(sys.executable).parent)) or shutil.which(PROGRAM)
    if found is None:
        raise ConfigError(f"{PROGRAM} is not installed: pip install 'triptych[nats-server]', or name a server of yours")
    return found


def _configuration(host: str, port: int, token: str | None, folder: Path) -> str:
    lines = [
        f"host: {json.dumps(host)}",
        f"port: {port or -1}",
        f"jetstream {{ store_dir: {json.dumps(str(folder / 'store'))}, max_memory_store: {MEMORY_BYTES} }}",
    ]
    if token is not None:
        lines.append(f"authorization {{ token: {json.dumps(token)} }}")
    return "\n".join(lines) + "\n"


def _announced(folder: Path) -> str:
    """Returns the client URL in the server's file of ports; empty while the file is missing or incomplete."""
    for file in folder.glob("*.ports"):
        with contextlib.suppress(ValueError, LookupError):
            return str(json.loads(file.read_text(encoding="utf-8"))["nats"][0])
    return ""


def _end_with_parent() -> None:
    """Makes the child end when its parent is killed. Runs in the child."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
