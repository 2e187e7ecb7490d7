"""Starts the process that tries grammars, and exchanges messages with it."""

from __future__ import annotations

import asyncio
import itertools
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

import triptych
from triptych.config import env
from triptych.engines.vllm.grammar.wire import LENGTH, Cancel, Setup, Trial, Verdict, frame

START_TIMEOUT_S = 120.0
"""Time limit for loading the grammar library. It takes seconds, and longer while engines start on the machine."""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Environment variables by which libraries start no threads, which a process that forks must not have."""


class ProcessLost(Exception):
    """Raised if the process has ended, or does not start."""


class GrammarProcess:
    """A template process. ``begin`` starts it, ``ready`` waits for it. Trials may overlap."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Verdict]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._lost = False

    @classmethod
    async def begin(cls) -> GrammarProcess:
        """Starts a process, and returns before it can try grammars: it loads as the engine starts. Raises OSError."""
        source = str(Path(triptych.__file__).parents[1])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "triptych.engines.vllm.grammar.template",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**env.bare_environment(), **_ONE_THREAD, "PYTHONPATH": source},
        )
        return cls(process)

    async def ready(self, setup: Setup) -> None:
        """Waits until the process can try grammars. Raises ProcessLost if it does not start."""
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                self._process.stdin.write(frame(setup))
                await self._process.stdin.drain()
                await self._read()
        except (OSError, EOFError, TimeoutError) as error:
            await self.close()
            raise ProcessLost("the process that tries grammars did not come up") from error
        self._reader = asyncio.create_task(self._listen(), name="grammar verdicts")

    @property
    def alive(self) -> bool:
        return not self._lost and self._process.returncode is None

    async def try_schema(self, schema: str) -> Verdict:
        """Returns the verdict on ``schema``.

        Raises ProcessLost if the process ends first. Cancelling ends the trial.
        """
        if not self.alive:
            raise ProcessLost("the process that tries grammars has ended")
        number = next(self._numbers)
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send(Trial(number, schema))
            return await future
        except asyncio.CancelledError:
            self._send(Cancel(number))
            raise
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Ends the process. May be called twice."""
        self._lose()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()  # its trials go with it
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _send(self, message: msgspec.Struct) -> None:
        if self.alive and self._process.stdin is not None:
            self._process.stdin.write(frame(message))

    async def _listen(self) -> None:
        try:
            while True:
                verdict = msgspec.msgpack.decode(await self._read(), type=Verdict)
                future = self._waiting.get(verdict.number)
                if future is not None and not future.done():
                    future.set_result(verdict)
        except (OSError, EOFError, msgspec.MsgspecError):
            self._lose()

    async def _read(self) -> bytes:
        assert self._process.stdout is not None
        (size,) = LENGTH.unpack(await self._process.stdout.readexactly(LENGTH.size))
        return await self._process.stdout.readexactly(size)

    def _lose(self) -> None:
        self._lost = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ProcessLost("the process that tries grammars has ended"))
