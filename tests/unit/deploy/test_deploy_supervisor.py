"""The supervisor with tiny real processes: start, restart, order of the stop, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from triptych.deploy import pulse
from triptych.deploy.commands import ChildSpec, Role
from triptych.deploy.report import Ready
from triptych.deploy.supervisor import USUAL_STOP, StartFailed, Stopper, StopTimes, Supervisor

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
STARTING = """
import signal, time
def told(*_): print("told", flush=True)
signal.signal(signal.SIGTERM, {handler})
print("begun", flush=True)
while True: time.sleep(1)
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

    def __init__(self, *specs: ChildSpec, times: StopTimes = USUAL_STOP) -> None:
        self.lines: list[tuple[str, str]] = []
        self.hooks: dict[str, Callable[[], None]] = {}
        self.stop = Stopper()
        self._supervisor = Supervisor(specs, self._write, lambda text: self._write("note", text), times=times)

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
    """Waits for the end of any process, whether it is our child or not."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            ended, _, _ = select.select([descriptor], [], [], timeout_s)
        finally:
            os.close(descriptor)
        assert ended, f"process {pid} is still alive"


SOON = StopTimes(all_s=0.6, worker_s=0.3)
"""For children that never stop."""


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


def test_a_ready_line_just_before_the_end_is_seen() -> None:
    stage = Stage(spec("it", "print('triptych: ready worker x')"))
    stage.hooks["note: it ended (exit status 0"] = stage.stop

    async def stay(_: dict[str, Ready]) -> None: ...

    stage.run(stay)

    assert stage.said("it is ready after")


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
    stage = Stage(spec("frontend", STUBBORN, "frontend"), spec("w-0", script), times=SOON)

    with pytest.raises(StartFailed) as caught:
        stage.run()

    assert str(caught.value) == f"w-0 did not start: {cause}"


def test_an_error_of_the_session_is_raised_after_the_stop() -> None:
    stage = Stage(spec("w-0", OBEDIENT))

    async def fail(_: dict[str, Ready]) -> None:
        raise LookupError("session")

    with pytest.raises(LookupError, match="session"):
        stage.run(fail)

    assert stage.said("stopping") == ["w-0"]


def test_a_process_that_ignores_sigterm_is_killed_in_time() -> None:
    stage = Stage(spec("frontend", STUBBORN, "frontend"), spec("w-0", STUBBORN), times=SOON)

    async def when_ready(_: dict[str, Ready]) -> None:
        stage.stop()

    stage.run(when_ready)  # returns once both are gone


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "told"])
def test_an_unready_process_gets_one_sigterm_and_little_time(
    handler: str,
) -> None:
    starting = spec("w-0", STARTING.replace("{handler}", handler))
    stage = Stage(spec("frontend", OBEDIENT, "frontend"), starting, times=StopTimes(all_s=600.0, starting_s=0.5))
    stage.hooks["w-0: begun"] = stage.stop

    stage.run()

    assert len(stage.said("told")) == (handler == "told")


def test_the_time_to_stop_is_within_ten_seconds() -> None:
    assert StopTimes().all_s < 10.0


def test_a_second_request_to_stop_kills_at_once() -> None:
    stage = Stage(spec("w-0", STUBBORN), times=StopTimes(all_s=600.0))

    async def when_ready(_: dict[str, Ready]) -> None:
        stage.stop()
        stage.stop()

    stage.run(when_ready)


@pytest.mark.parametrize("end", ["stop", "crash"])
def test_helpers_of_a_process_end_with_it(end: str) -> None:
    crash = "os.kill(os.getpid(), 9)" if end == "crash" else ""
    stage = Stage(spec("w-0", OBEDIENT, extra=WITH_HELPER + crash))
    stage.hooks["w-0: helper" if end == "stop" else "note: w-0 ended"] = stage.stop

    async def stay(_: dict[str, Ready]) -> None: ...

    stage.run(stay)

    for line in [line for _, line in stage.lines if line.startswith("helper")]:
        assert_gone(int(line.split()[1]))


# Gives signs of life until it is told what to do about them: stop giving them, or stop altogether.
ALIVE = """
import os, signal, sys, threading, time
beat = lambda: open(os.environ["TRIPTYCH_HEARTBEAT"], "w").close() or os.utime(os.environ["TRIPTYCH_HEARTBEAT"])
beat()
print("triptych: ready {role} http://x model=m", flush=True)
{extra}
"""
QUIET = "signal.pause()"
STOPPED = "os.kill(os.getpid(), signal.SIGSTOP)"
BUSY = "while True: pass"
BEATING = "while True: beat(), time.sleep(0.02)"


def watched(folder: Path, *specs: ChildSpec) -> Stage:
    stage = Stage(*specs)
    stage._supervisor._pulses = pulse.Pulses(folder, 0.4, look_s=0.05)
    return stage


@pytest.mark.parametrize("what", [QUIET, STOPPED, BUSY], ids=["blocked", "stopped", "busy"])
def test_a_process_that_hangs_is_killed_with_its_helpers_and_started_again(what: str, tmp_path: Path) -> None:
    stage = watched(tmp_path, spec("w-0", ALIVE, extra=WITH_HELPER + what))
    stage.hooks["note: w-0 is ready again"] = stage.stop

    async def stay(_: dict[str, Ready]) -> None: ...

    stage.run(stay)

    notes = [line for name, line in stage.lines if name == "note"]
    assert "w-0 hangs, for the first time: no sign of life for 0.4 s (--hang-timeout-s); it is killed" in notes
    assert any(line.startswith("w-0 ended (killed by SIGKILL") for line in notes)
    for line in [line for _, line in stage.lines if line.startswith("helper")]:
        assert_gone(int(line.split()[1]))


def test_processes_that_do_not_hang_are_not_killed(tmp_path: Path) -> None:
    late = ALIVE.replace("print(", "time.sleep(1.0) or print(").replace("{extra}", BEATING)
    stage = watched(
        tmp_path,
        spec("beats", ALIVE, extra=BEATING),
        spec("mute", OBEDIENT),
        spec("late", late),
    )
    stage.run()
    assert not stage.said("hangs")
    assert sorted(stage.said("triptych: ready")) == ["beats", "late", "mute"]


def look(beat: int | None, state: str = "S", cpu_s: float = 0.0) -> pulse.Look:
    return pulse.Look(beat, state, cpu_s)


@pytest.mark.parametrize(
    ("looks", "hangs_at"),
    [
        ([look(1)] * 6, 3),
        ([look(None)] * 9, None),
        ([look(n // 3) for n in range(9)], None),
        ([look(1, "t")] * 9, None),
        ([look(1, "T")] * 9, 3),
        ([look(1, "R", 0.01 * n) for n in range(9)], None),
        ([look(1, "R", 0.9 * n) for n in range(9)], 3),
        ([look(1, "D")] * 40, 30),
    ],
    ids=["quiet", "never a sign", "slow signs", "debugged", "stopped", "starved", "busy", "starved for long"],
)
def test_hangs_are_counted_in_periods(looks: list[pulse.Look], hangs_at: int | None) -> None:
    one = pulse.Pulse(3.0, 1.0)
    found = next((place for place, seen in enumerate(looks) if one.hangs(seen)), None)
    assert found == hangs_at
