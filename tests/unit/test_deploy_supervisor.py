"""The supervisor over tiny real processes: start, restart, order of the end, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import select
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from triptych.deploy import supervisor as supervisor_module
from triptych.deploy.commands import ChildSpec, Role
from triptych.deploy.report import Ready
from triptych.deploy.supervisor import StartFailed, Stopper, Supervisor

# Says that it is ready, then waits for SIGTERM and says so. `{extra}` runs after the ready line.
OBEDIENT = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("stopping", flush=True), os._exit(0)))
print("triptych: ready {role} http://x model=m", flush=True)
{extra}
while True: signal.pause()
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("triptych: ready worker w model=m", flush=True)
while True: signal.pause()
"""
WITH_HELPER = """
import subprocess, sys
helper = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print("helper", helper.pid, flush=True)
"""


def spec(name: str, script: str, role: Role = "worker", extra: str = "") -> ChildSpec:
    code = script.replace("{role}", role).replace("{extra}", extra)
    return ChildSpec(name=name, role=role, command=(sys.executable, "-c", code))


class Stage:
    """A supervisor with its output recorded; ``hooks`` are called for a line that contains their key."""

    def __init__(self, *specs: ChildSpec) -> None:
        self.lines: list[tuple[str, str]] = []
        self.hooks: dict[str, Callable[[], None]] = {}
        self.stop = Stopper()
        self._supervisor = Supervisor(specs, self._write, lambda text: self._write("note", text))

    def _write(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        for key, hook in list(self.hooks.items()):
            if key in f"{name}: {line}":
                hook()

    def run(self, when_ready: Callable[[dict[str, Ready]], Awaitable[None]] | None = None) -> None:
        async def stop_at_once(_: dict[str, Ready]) -> None:
            self.stop()

        asyncio.run(self._supervisor.run(self.stop, when_ready or stop_at_once))

    def said(self, text: str) -> list[str]:
        return [name for name, line in self.lines if text in line]


def assert_gone(pid: int, timeout_s: float = 5.0) -> None:
    """Wait for the end of any process, child of ours or not."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            ended, _, _ = select.select([descriptor], [], [], timeout_s)
        finally:
            os.close(descriptor)
        assert ended, f"process {pid} is still alive"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short time to stop, for children that never do."""
    monkeypatch.setattr(supervisor_module, "STOP_TIMEOUT_S", 0.6)
    monkeypatch.setitem(supervisor_module.KEPT_S, "worker", 0.3)


def test_all_become_ready_and_the_frontend_is_stopped_first() -> None:
    stage = Stage(spec("w-0", OBEDIENT), spec("frontend", OBEDIENT, "frontend"), spec("w-1", OBEDIENT))
    reports: dict[str, Ready] = {}

    async def when_ready(given: dict[str, Ready]) -> None:
        reports.update(given)
        stage.stop()

    stage.run(when_ready)

    assert reports.keys() == {"w-0", "w-1", "frontend"}
    assert reports["w-0"].model == "m"
    assert reports["frontend"].url == "http://x"
    stopped = stage.said("stopping")
    assert stopped[0] == "frontend"
    assert sorted(stopped[1:]) == ["w-0", "w-1"]


@pytest.mark.parametrize("role", ["worker", "frontend"])
def test_a_crash_after_ready_is_restarted(role: Role) -> None:
    stage = Stage(spec("it", OBEDIENT, role, extra="os.kill(os.getpid(), 9)"))
    stage.hooks["note: it is ready again"] = stage.stop

    async def stay(_: dict[str, Ready]) -> None: ...

    stage.run(stay)

    assert ("note", "it ended (killed by SIGKILL without a word); it starts again in 0.5 s") in stage.lines
    assert len(stage.said("triptych: ready")) == 2


def test_a_ready_line_just_before_the_end_counts() -> None:
    stage = Stage(spec("it", "print('triptych: ready worker x')"))
    stage.hooks["note: it ended (exit status 0"] = stage.stop

    async def stay(_: dict[str, Ready]) -> None: ...

    stage.run(stay)

    assert stage.said("it is ready after")


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("import sys; sys.exit('triptych: error: no such model')", "no such model"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV without a word"),
    ],
    ids=["own words", "traceback", "signal"],
)
def test_a_failed_start_stops_everything_and_says_why(script: str, cause: str) -> None:
    stage = Stage(spec("frontend", STUBBORN, "frontend"), spec("w-0", script))

    with pytest.raises(StartFailed) as caught:
        stage.run()

    assert str(caught.value) == f"w-0 did not start: {cause}"


def test_what_the_session_raises_comes_through_after_the_stop() -> None:
    stage = Stage(spec("w-0", OBEDIENT))

    async def fail(_: dict[str, Ready]) -> None:
        raise LookupError("session")

    with pytest.raises(LookupError, match="session"):
        stage.run(fail)

    assert stage.said("stopping") == ["w-0"]


@pytest.mark.usefixtures("soon")
def test_a_process_that_ignores_sigterm_is_killed_in_time() -> None:
    stage = Stage(spec("frontend", STUBBORN, "frontend"), spec("w-0", STUBBORN))
    begun = 0.0

    async def when_ready(_: dict[str, Ready]) -> None:
        nonlocal begun
        begun = time.monotonic()
        stage.stop()

    stage.run(when_ready)

    assert time.monotonic() - begun < supervisor_module.STOP_TIMEOUT_S + 1.0


def test_the_time_to_stop_is_within_ten_seconds() -> None:
    assert supervisor_module.STOP_TIMEOUT_S < 10.0


def test_a_second_wish_to_stop_kills_at_once() -> None:
    stage = Stage(spec("w-0", STUBBORN))
    begun = 0.0

    async def when_ready(_: dict[str, Ready]) -> None:
        nonlocal begun
        begun = time.monotonic()
        stage.stop()
        stage.stop()

    stage.run(when_ready)

    assert time.monotonic() - begun < 2.0


@pytest.mark.parametrize("end", ["stop", "crash"])
def test_helpers_of_a_process_end_with_it(end: str) -> None:
    crash = "os.kill(os.getpid(), 9)" if end == "crash" else ""
    stage = Stage(spec("w-0", OBEDIENT, extra=WITH_HELPER + crash))
    stage.hooks["w-0: helper" if end == "stop" else "note: w-0 ended"] = stage.stop

    async def stay(_: dict[str, Ready]) -> None: ...

    stage.run(stay)

    for line in [line for _, line in stage.lines if line.startswith("helper")]:
        assert_gone(int(line.split()[1]))
