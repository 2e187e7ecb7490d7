"""A stop signal ends vLLM's start within 5 s at every moment of it, with all of its processes and files."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.loops import SOON_S
from triptych.aio.descendants import descendants

WORDS = ("worker", "--model", "demo", "--engine", "vllm", "--span", "pd", "--transfer", "shm")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path leaves room for the names of Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


def loads_torch(pid: int) -> bool:
    return "libtorch_cpu" in _text(f"/proc/{pid}/maps")


def has_engine(pid: int) -> bool:
    """Whether vLLM's engine process has begun."""
    return bool(_engines(pid))


def engine_imports(pid: int) -> bool:
    return any(loads_torch(one) for one in _engines(pid))


def engine_listens(pid: int) -> bool:
    """Whether the engine process has come to its sockets, after which it loads the model."""
    return any("anon_inode:[eventpoll]" in _links(one) and loads_torch(one) for one in _engines(pid))


@pytest.mark.parametrize(
    ("moment", "number", "send"),
    [
        (loads_torch, signal.SIGTERM, os.kill),
        pytest.param(has_engine, signal.SIGINT, os.killpg, marks=pytest.mark.full),
        pytest.param(engine_imports, signal.SIGTERM, os.kill, marks=pytest.mark.full),
        (engine_listens, signal.SIGHUP, os.killpg),
    ],
)
def test_a_signal_while_vllm_starts(
    tmp_path: Path,
    short_folder: Path,
    moment: Callable[[int], bool],
    number: signal.Signals,
    send: Callable[[int, int], None],
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "triptych", *WORDS],
            stdout=output,
            stderr=output,
            env={**os.environ, "TRIPTYCH_RUN_DIR": str(tmp_path / "run"), "TMPDIR": str(short_folder)},
            process_group=0,
        )
    opened: list[int] = []
    try:
        deadline = time.monotonic() + 120
        while not moment(process.pid):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        opened += [os.pidfd_open(pid) for pid in descendants(process.pid)]
        begun = time.monotonic()
        send(process.pid, number)
        assert process.wait(SOON_S) == 128 + number
        for descriptor in opened:
            left_s = max(0.0, begun + SOON_S - time.monotonic())
            assert select.select([descriptor], [], [], left_s)[0], "a process is left behind"
    finally:
        for descriptor in opened:
            os.close(descriptor)
        for pid in (*descendants(process.pid), *([process.pid] if process.poll() is None else [])):
            os.kill(pid, signal.SIGKILL)
        process.wait(10)
    assert f"triptych: stopped while starting ({number.name})" in log.read_text()
    assert not list(Path("/dev/shm").glob(f"triptych-shm-{process.pid}-*"))
    left = [path.name for path in short_folder.iterdir() if not path.name.startswith("torchinductor")]
    assert left == []


def _engines(pid: int) -> list[int]:
    lines = {one: _text(f"/proc/{one}/cmdline") for one in descendants(pid)}
    return [one for one, line in lines.items() if "spawn_main" in line or "VLLM" in line]


def _links(pid: int) -> set[str]:
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    except OSError:
        pass
    return found


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
