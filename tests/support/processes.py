"""``python -m triptych ...`` in child processes, for what only a real process can do: be killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.loops import SOON_S, until

READY_S = 20.0
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("TRIPTYCH_")}


class Child:
    """A running command, which said that it is ready."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        """Its standard error."""
        self.ready = ""
        """Its ready line."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def ended(self, limit_s: float = SOON_S) -> int:
        """Its exit status (negative: the signal's number)."""
        await until(lambda: self.process.poll() is not None, "the process ends", limit_s)
        return int(self.process.returncode)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@asynccontextmanager
async def child(
    *words: str,
    run_dir: Path,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    max_files: int | None = None,
    process_group: int | None = None,
) -> AsyncIterator[Child]:
    """Run ``triptych`` with ``words``; it is killed at the end of the block, whatever happened in it.

    ``max_files``: its limit on open files. ``process_group``: 0 for a group of its own, as a shell makes.
    """
    running = _start(words, run_dir, env or {}, cwd, max_files, process_group)
    try:
        assert running.process.stdout is not None
        running.ready = await asyncio.to_thread(_first_line, running.process)
        assert running.ready.startswith("triptych: ready"), f"{words} said {running.ready!r}:\n{_text(running.log)}"
        yield running
    finally:
        running.kill()


def _start(
    words: tuple[str, ...],
    run_dir: Path,
    env: dict[str, str],
    cwd: Path | None,
    max_files: int | None = None,
    process_group: int | None = None,
) -> Child:
    limited = ["prlimit", f"--nofile={max_files}"] if max_files else []
    log = run_dir / f"{words[0]}-{os.urandom(3).hex()}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*limited, sys.executable, "-m", "triptych", *words],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=cwd,
            process_group=process_group,
            env={**CLEAN, "TRIPTYCH_RUN_DIR": str(run_dir), **env},
        )
    return Child(process, log)


def _first_line(process: subprocess.Popen[str]) -> str:
    """What it says first; a process that says nothing in time is killed, which ends the wait."""
    assert process.stdout is not None
    patience = threading.Timer(READY_S, process.kill)
    patience.start()
    try:
        return process.stdout.readline()
    finally:
        patience.cancel()
        patience.join()


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
