"""``python -m triptych ...`` in child processes, for what only a real process can do: be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

READY_S = 20.0
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("TRIPTYCH_")}


class Child:
    """A running command, which said that it is ready."""

    def __init__(self, process: asyncio.subprocess.Process, ready: str) -> None:
        self.process = process
        self.ready = ready
        """Its ready line."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def ended(self, limit_s: float = 15.0) -> int:
        """Its exit status (negative: the signal's number)."""
        async with asyncio.timeout(limit_s):
            return await self.process.wait()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
        await self.process.wait()


@asynccontextmanager
async def child(*words: str, run_dir: Path, env: dict[str, str] | None = None) -> AsyncIterator[Child]:
    """Run ``triptych`` with ``words``; it is killed at the end of the block, whatever happened in it."""
    log = run_dir / f"{words[0]}-{os.urandom(3).hex()}.log"
    with log.open("wb") as stderr:  # noqa: ASYNC230 (a local file, opened once)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "triptych",
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env={**CLEAN, "TRIPTYCH_RUN_DIR": str(run_dir), **(env or {})},
        )
    running = Child(process, "")
    try:
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            running.ready = (await process.stdout.readline()).decode()
        assert running.ready.startswith("triptych: ready"), f"{words} said {running.ready!r}:\n{_text(log)}"
        yield running
    finally:
        await running.kill()


def _text(log: Path) -> str:
    return log.read_text(errors="replace")


def mock_worker(*words: str, engine: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Words of a worker with the mock engine; ``engine`` holds its flags."""
    return ("worker", "--model", "demo", "--served-model-name", "demo", "--engine", "mock", *words, "--", *engine)


def command(
    *words: str, run_dir: Path, env: dict[str, str] | None = None, limit_s: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run ``triptych`` with ``words`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "triptych", *words],
        capture_output=True,
        text=True,
        timeout=limit_s,
        env={**CLEAN, "TRIPTYCH_RUN_DIR": str(run_dir), **(env or {})},
        check=False,
    )
