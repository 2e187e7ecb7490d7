"""Runs one child process: starts it, reads its output, and ends it with its whole process group."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from triptych.config import env
from triptych.deploy.commands import ChildSpec
from triptych.deploy.output import Lines
from triptych.deploy.report import Ready, exit_cause, parse_ready
from triptych.runtime.engine_log import last_lines, log_named_in

KEPT_ERROR_LINES = 50
OUTPUT_TIMEOUT_S = 2.0
"""Time for the pipes to close once the process group is dead; a process that left the group may keep them open."""

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class Child(asyncio.SubprocessProtocol):
    """A process in a session of its own, which a terminal's Ctrl-C does not reach.

    ``on_ready`` is called for its ready line. ``exited`` is set when nothing of its group is alive any more. The pipe
    to its standard input carries one line, its secrets, and stays open: when it closes, ``deploy.child`` knows
    that the supervisor has ended.
    """

    def __init__(
        self, name: str, write_line: Callable[[str, str], None], on_ready: Callable[[str, Ready], None]
    ) -> None:
        self.name = name
        self.exited = asyncio.Event()
        self.ready_at: float | None = None
        """The monotonic time of the ready line; None before it. It is final once ``cause`` has returned."""
        self._write_line = write_line
        self._on_ready = on_ready
        self._lines = {_STDOUT: Lines(), _STDERR: Lines()}
        self._engine_log: Path | None = None
        self._errors: deque[str] = deque(maxlen=KEPT_ERROR_LINES)
        self._closed = asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None

    @classmethod
    async def start(
        cls,
        spec: ChildSpec,
        write_line: Callable[[str, str], None],
        on_ready: Callable[[str, Ready], None],
    ) -> Child:
        """Starts the process of ``spec``. Kills it when cancelled."""
        environment = env.child_environment({"PYTHONUNBUFFERED": "1", **spec.env})
        _, child = await asyncio.get_running_loop().subprocess_exec(
            lambda: cls(spec.name, write_line, on_ready),
            *spec.command,
            env=environment,
            start_new_session=True,
        )
        child.send_secrets(spec.secrets)
        return child

    @property
    def pid(self) -> int:
        return self._process().get_pid()

    def send_secrets(self, secrets: dict[str, str]) -> None:
        """Writes the line that ``deploy.child`` reads first. Does nothing if the process has ended."""
        pipe = self._process().get_pipe_transport(_STDIN)
        cast(asyncio.WriteTransport, pipe).write(json.dumps(secrets).encode() + b"\n")

    async def cause(self) -> str:
        """Waits for the last output and returns, in one line, why the process ended. Call it after ``exited``.

        If the process was killed, it could not show the end of its engine's log; this does.
        """
        await self._output_ended()
        status = self._process().get_returncode() or 0
        if status < 0 and self._engine_log is not None and (lines := last_lines(self._engine_log)):
            for line in (f"the end of {self._engine_log}:", *(f"  {line}" for line in lines)):
                self._write_line(self.name, line)
        return exit_cause(status, self._errors)

    def terminate(self) -> None:
        """Sends SIGTERM to the process, not to its helpers."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the process and its whole group."""
        if not self.exited.is_set():
            _kill_group(self._process().get_pid())

    async def close(self) -> None:
        """Frees the pipes of a process that has exited. May be called twice."""
        await self._output_ended()
        self._process().close()

    async def _output_ended(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), OUTPUT_TIMEOUT_S)

    def _process(self) -> asyncio.SubprocessTransport:
        assert self._transport is not None, "connection_made comes first"
        return self._transport

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._process().send_signal(number)

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        for line in self._lines[fd].feed(data):
            self._line(fd, line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        for line in self._lines[fd].end() if fd in self._lines else ():
            self._line(fd, line)

    def process_exited(self) -> None:
        _kill_group(self._process().get_pid())
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()

    def _line(self, fd: int, line: str) -> None:
        self._write_line(self.name, line)
        if fd == _STDERR:
            self._errors.append(line)
            self._engine_log = log_named_in(line) or self._engine_log
        elif (report := parse_ready(line)) is not None:
            self.ready_at = time.monotonic()
            self._on_ready(self.name, report)


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
