"""Child processes of the benchmarks: nothing that was started may be left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.procs import Child, StartError, cpu_seconds, resident_mib, send_signal, tree

# A parent with a child in a session of its own; told so, it ignores SIGTERM, or answers it with one more child.
PARENT = """
import signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
if "late" in sys.argv:
    def spawn_and_leave(*_):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        sys.exit()
    signal.signal(signal.SIGTERM, spawn_and_leave)
print("test: ready", child.pid, flush=True)
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
print("test: worked", flush=True)
time.sleep(60)
"""


def state(pid: int) -> str:
    """State letter of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


async def until(pid: int, *states: str) -> None:
    while state(pid) not in states:
        await asyncio.sleep(0.01)


async def start(tmp_path: Path, *words: str) -> tuple[Child, int]:
    child = await Child.start("x", [sys.executable, "-c", PARENT, *words], tmp_path)
    line = await child.wait_line("test: ready", 20)
    return child, int(line.split()[-1])


@pytest.mark.parametrize("words", [(), ("stubborn",)])
async def test_stop_ends_the_program_and_all_that_it_started(tmp_path: Path, words: tuple[str, ...]) -> None:
    child, grandchild = await start(tmp_path, *words)
    assert set(tree([child.pid])) == {child.pid, grandchild}
    await child.stop(grace_s=0.3)
    assert child.process.returncode is not None
    await until(grandchild, "", "Z")
    await child.stop(grace_s=0.3)


async def test_a_process_started_while_stopping_is_stopped_too(tmp_path: Path) -> None:
    child, _ = await start(tmp_path, "late")
    await child.stop(grace_s=0.3)
    assert not [pid for pid in tree([child.pid]) if state(pid) not in ("", "Z")]


async def test_cpu_and_memory_of_a_tree_and_freezing_it(tmp_path: Path) -> None:
    child, grandchild = await start(tmp_path)
    try:
        await child.wait_line("test: worked", 20)
        assert cpu_seconds(tree([child.pid])) >= 0.15
        assert resident_mib(tree([child.pid])) > 5
        send_signal(tree([child.pid]), signal.SIGSTOP)
        await until(grandchild, "T")
    finally:
        await child.stop(grace_s=0.3)


async def test_a_program_that_ends_or_stays_silent_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    child = await Child.start("x", [sys.executable, "-c", "raise SystemExit('no such model')"], tmp_path)
    with pytest.raises(StartError, match="ended with 1: no such model"):
        await child.wait_line("test: ready", 20)
    await child.stop()
    child, _ = await start(tmp_path)
    with pytest.raises(StartError, match="in vain for a line `never`"):
        await child.wait_line("never", 0.2)
    await child.stop(grace_s=0.3)


async def test_variables_can_be_set_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TEST_GONE", "1")
    code = "import os; print('test:', os.environ.get('BENCH_TEST_GONE'), os.environ['BENCH_TEST_NEW'])"
    env = {"BENCH_TEST_GONE": None, "BENCH_TEST_NEW": "2"}
    child = await Child.start("x", [sys.executable, "-c", code], tmp_path, env=env)
    assert await child.wait_line("test:", 20) == "test: None 2"
    await child.stop()
    assert os.environ["BENCH_TEST_GONE"] == "1"


async def test_a_program_that_is_started_again_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    lines = []
    for number in range(2):
        child = await Child.start("x", [sys.executable, "-c", f"print('ready {number}')"], tmp_path)
        await child.process.wait()
        lines.append(await child.wait_line("ready", 5.0))
        await child.stop()
    assert lines == ["ready 0", "ready 1"]
