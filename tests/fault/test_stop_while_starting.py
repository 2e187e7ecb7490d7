"""A stop signal during the start ends every command within 5 s, with all processes below it and all files."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.deployment import chat_body, deployment
from support.loops import SOON_S
from support.processes import CLEAN, child, mock_worker
from support.sse import parse
from triptych.aio.descendants import descendants

HELD = "--start-s=60"
"""The mock engine's start: its thread catches every exception, its children ignore signals."""


class Starting:
    """A command that is not ready yet, and the processes below it as they were seen last."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.below: dict[int, str] = {}

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 40
        while not condition():
            assert self.process.poll() is None, f"it ended before {what}: {self.errors()}"
            assert time.monotonic() < deadline, f"{what} never came: {self.errors()}"
            time.sleep(0.01)

    def wait_for_child(self, words: str) -> None:
        """Wait until a process below has ``words`` in its command line."""

        def seen() -> bool:
            self.below = {pid: _command_line(pid) for pid in descendants(self.process.pid)}
            return any(words in line for line in self.below.values())

        self.wait_until(seen, f"a process {words!r}")

    def errors(self) -> str:
        return (self.folder / "stderr").read_text()

    def stop(self, number: int, send: Callable[[int, int], None] = os.kill) -> int:
        """Send a signal. Returns the exit status once the process and all below are gone, as the shell sees it."""
        opened = [os.pidfd_open(pid) for pid in self.below]
        begun = time.monotonic()
        send(self.process.pid, number)
        try:
            status = self.process.wait(SOON_S)
            for descriptor, (pid, line) in zip(opened, self.below.items(), strict=True):
                left_s = max(0.0, begun + SOON_S - time.monotonic())
                assert select.select([descriptor], [], [], left_s)[0], f"process {pid} is left behind: {line}"
        finally:
            for descriptor in opened:
                os.close(descriptor)
        return status

    def files(self) -> list[str]:
        """Files that are left in its run and temporary directories, and its shared memory."""
        places = [*(self.folder / "run").rglob("*"), *(self.folder / "tmp").rglob("*")]
        shared = Path("/dev/shm").glob(f"triptych-shm-{self.process.pid}-*")
        return [str(path) for path in (*places, *shared) if not path.is_dir() and path.name != "token"]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@contextmanager
def starting(folder: Path, *words: str, run_dir: bool = True) -> Iterator[Starting]:
    """Start ``triptych`` with ``words`` in a process group of its own, as a shell does."""
    for name in ("run", "tmp"):
        (folder / name).mkdir()
    environment = {**CLEAN, "TMPDIR": str(folder / "tmp")}
    if run_dir:
        environment["TRIPTYCH_RUN_DIR"] = str(folder / "run")
    with (folder / "stderr").open("wb") as errors, (folder / "stdout").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "triptych", *words],
            stdout=output,
            stderr=errors,
            env=environment,
            process_group=0,
        )
    try:
        yield Starting(process, folder)
    finally:
        for pid in descendants(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait(10)


def held_graph(folder: Path) -> str:
    graph = folder / "graph.yaml"
    worker = {"name": "w", "engine": "mock", "transfer": "shm", "args": [HELD]}
    graph.write_text(json.dumps({"model": "demo", "frontend": {"port": 0}, "workers": [worker]}))
    return str(graph)


@pytest.mark.parametrize(
    ("number", "send"),
    [
        (signal.SIGTERM, os.kill),
        (signal.SIGHUP, os.kill),
        pytest.param(signal.SIGINT, os.killpg, id="Ctrl-C"),
    ],
)
def test_a_worker_whose_engine_starts(tmp_path: Path, number: signal.Signals, send: Callable[[int, int], None]) -> None:
    with starting(tmp_path, *mock_worker("--transfer", "shm", engine=(HELD,))) as worker:
        worker.wait_for_child("sleep 600")
        assert worker.files(), "there is something to remove"

        assert worker.stop(number, send) == 128 + number

        assert worker.errors().splitlines()[-1] == f"triptych: stopped while starting ({number.name})"
        assert "Traceback" not in worker.errors()
        assert worker.files() == []


@pytest.mark.parametrize(("command", "number"), [("up", signal.SIGINT), ("demo", signal.SIGTERM)])
def test_a_deployment_of_which_a_worker_starts(tmp_path: Path, command: str, number: signal.Signals) -> None:
    words = ("up", held_graph(tmp_path)) if command == "up" else ("demo", "--graph", held_graph(tmp_path))
    with starting(tmp_path, *words, run_dir=False) as up:
        up.wait_for_child("sleep 600")

        assert up.stop(number) == 128 + number

        assert up.errors().splitlines()[-1] == f"triptych: stopped while starting ({number.name})"
        assert "Traceback" not in up.errors()
        assert up.files() == []


def test_several_signals_at_once_leave_nothing_either(tmp_path: Path) -> None:
    def storm(pid: int, number: int) -> None:
        for one in (number, number, signal.SIGTERM, signal.SIGINT, number):
            os.kill(pid, one)

    with starting(tmp_path, *mock_worker("--transfer", "shm", engine=(HELD,))) as worker:
        worker.wait_for_child("sleep 600")
        assert worker.stop(signal.SIGHUP, storm) in {128 + one for one in (1, 2, 15)}
        assert worker.files() == []


async def test_a_terminal_that_closes_does_not_cut_a_drain_short(tmp_path: Path) -> None:
    async with deployment(workers=0) as d:  # noqa: SIM117 (reads better with the child inside)
        async with child(*mock_worker("--transfer", "shm", engine=("--itl-ms", "10")), run_dir=d.run_dir) as worker:
            await d.ready()
            body = chat_body("x", stream=True, ignore_eos=True, max_tokens=60)
            async with d.http.stream("POST", "/v1/chat/completions", json=body) as answer:
                events = answer.aiter_raw()
                seen = await anext(events)
                worker.signal(signal.SIGHUP)
                worker.signal(signal.SIGHUP)
                stream = parse(seen + b"".join([chunk async for chunk in events]))
            assert (stream.error, stream.finish_reason()) == (None, "length")
            assert await worker.ended() == 0


def test_a_deployment_that_is_killed_takes_a_starting_worker_along(tmp_path: Path) -> None:
    with starting(tmp_path, "up", held_graph(tmp_path)) as up:
        up.wait_for_child("sleep 600")
        assert up.stop(signal.SIGKILL) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("words", "number"),
    [
        pytest.param(("frontend", "--port", "0"), signal.SIGINT, id="frontend"),
        pytest.param(mock_worker("--transfer", "shm")[:-1], signal.SIGTERM, id="worker that registers"),
    ],
)
def test_a_process_that_waits_for_its_plane(tmp_path: Path, words: tuple[str, ...], number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(40)
        plane = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        with starting(tmp_path, *words, "--plane", plane) as process:
            connection, _ = silent.accept()
            with connection:
                assert process.stop(number) == 128 + number
        assert process.errors().splitlines()[-1] == f"triptych: stopped while starting ({number.name})"


def test_a_verify_that_waits_for_an_answer(tmp_path: Path) -> None:
    number = signal.SIGINT
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(40)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with starting(tmp_path, "verify", "--url", url) as process:
            connection, _ = silent.accept()
            with connection:
                assert process.stop(number) == 128 + number
        assert process.errors() == f"triptych: stopped ({number.name})\n"


def test_a_simulation(tmp_path: Path) -> None:
    number = signal.SIGTERM
    trace = tmp_path / "trace.jsonl"
    one = {"input_length": 4000, "output_length": 400, "hash_ids": list(range(8))}
    trace.write_text("\n".join(json.dumps({"timestamp": 10 * place, **one}) for place in range(20_000)))
    with starting(tmp_path, "simulate", str(trace)) as process:
        process.wait_until(lambda: "requests in" in (tmp_path / "stdout").read_text(), "the trace's size")
        assert process.stop(number) == 128 + number
        assert process.errors() == f"triptych: stopped ({number.name})\n"


async def test_a_second_signal_ends_a_drain_at_once(tmp_path: Path) -> None:
    words = mock_worker("--transfer", "shm", "--drain-timeout-s", "600", engine=("--itl-ms", "50"))
    async with deployment(workers=0) as d:  # noqa: SIM117 (reads better with the child inside)
        async with child(*words, run_dir=d.run_dir) as worker:
            await d.ready()
            body = chat_body("x", stream=True, ignore_eos=True, max_tokens=4000)
            async with d.http.stream("POST", "/v1/chat/completions", json=body) as answer:
                events = answer.aiter_raw()
                await anext(events)
                worker.signal(signal.SIGTERM)
                await d.ready(False)
                begun = time.monotonic()
                while worker.process.poll() is None:  # the first of these may come too soon to be a second one
                    worker.signal(signal.SIGTERM)
                    assert time.monotonic() - begun < SOON_S, "the drain goes on"
                    await asyncio.sleep(0.05)
                assert await worker.ended() == 128 + signal.SIGTERM
            assert "stopped at once, by a second signal (SIGTERM)" in worker.log.read_text()
