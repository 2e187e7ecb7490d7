"""Stop signals reach the process that they are sent to, and no other. Its leftovers are removed with it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.aio import leftovers
from triptych.aio.leftovers import PrivateFolder
from triptych.cli.stopping import guarded

# A guarded process with a fork that has the default handlers for its signals: it dies, its parent goes on.
FORKED = """
import os, signal, sys
from triptych.cli.stopping import guarded
with guarded("never said") as guard:
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, b"x")
        while True: signal.pause()
    os.read(reader, 1)
    os.kill(child, signal.{name})
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.exit(3 if ended else 4)
"""
# Prints its handlers after the block.
AFTER = """
import signal
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
from triptych.cli.stopping import guarded
with guarded(): pass
after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
assert after == before, after
assert signal.set_wakeup_fd(-1) == -1
"""
# Stopped by its own signal while a grandchild of a dead child runs.
ORPHAN = """
import os, signal, subprocess
from triptych.cli.stopping import guarded
with guarded("gone"):
    said = subprocess.run(["sh", "-c", "sleep 600 >&2 & echo $!"], stdout=subprocess.PIPE).stdout
    print(said.decode().strip(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        try: signal.pause()
        except BaseException: pass
"""


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_forked_process_handles_its_own_signals(name: str) -> None:
    ended = python(FORKED.replace("{name}", name))
    assert ended.returncode == 3, ended.stderr
    assert "never said" not in ended.stderr


def test_signal_handlers_are_restored() -> None:
    ended = python(AFTER)
    assert ended.returncode == 0, ended.stderr


def test_orphans_are_found() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        orphan = os.pidfd_open(int(process.stdout.readline()))
        try:
            assert process.wait(10) == 128 + signal.SIGTERM
            assert select.select([orphan], [], [], 5)[0], "the orphan outlived it"
        finally:
            os.close(orphan)
        assert process.stderr.read() == "triptych: gone (SIGTERM)\n"


def test_an_inner_block_uses_the_outer_guard() -> None:
    with guarded() as outer, guarded() as inner:
        assert inner is outer


def test_leftover_processes_are_killed_on_request(tmp_path: Path) -> None:
    file, kept = tmp_path / "file", tmp_path / "kept"
    for path in (file, kept):
        path.touch()
        leftovers.add(path)
    leftovers.discard(kept)
    folder, closed = PrivateFolder("triptych-test-"), PrivateFolder("triptych-test-")
    (folder.path / "inside").touch()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    closed.close()
    assert not closed.path.exists()

    leftovers.remove_all()

    assert not file.exists()
    assert not folder.path.exists()
    assert kept.exists()
    folder.close()
