"""What an engine writes is kept in a bounded file, and tells how far its start has come."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from triptych.aio import terminal
from triptych.contracts.errors import ConfigError
from triptych.observability import phases
from triptych.runtime import engine_log

_ENGINE = """
import os, subprocess, sys
from pathlib import Path
from triptych.aio import terminal
from triptych.observability import phases
from triptych.runtime import engine_log
engine_log.TELL_S, engine_log.NEW_PHASE_S, engine_log.POLL_S = 0.2, 0.0, 0.01
verbose, fails = sys.argv[2] == "verbose", sys.argv[3] == "fails"
with engine_log.kept(Path(sys.argv[1]), "default", "w 1/x", verbose=verbose) as stop_telling:
    phases.recognise((("Starting to load", "loading the weights"),))
    phases.enter("importing")
    print("a line of Python")
    os.system("echo a line of a child; echo Starting to load the model >&2")
    sys.stdin.readline()
    stop_telling()
    terminal.say("ready")
    sys.stdin.readline()
    if fails:
        raise ValueError("it failed")
terminal.say("over")
"""


class Engine:
    """A process that keeps an engine's output, and waits twice for a line."""

    def __init__(self, folder: Path, verbose: bool = False, fails: bool = False) -> None:
        words = ["verbose" if verbose else "-", "fails" if fails else "-"]
        self.errors = folder / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _ENGINE, str(folder / "run"), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.folder = folder

    @property
    def log(self) -> Path:
        return self.folder / "run" / "default" / "logs" / f"w_1_x-{self.process.pid}.log"

    def said(self) -> str:
        return self.errors.read_text()

    def end(self) -> str:
        out, _ = self.process.communicate("\n\n", timeout=30)
        return out


def wait_for(condition: Callable[[], bool], limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_phases_are_told_by_code_and_by_lines_and_the_output_goes_to_a_file(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    wait_for(lambda: engine.said().count("loading the weights (") >= 2)  # again while it lasts
    assert engine.end() == "ready\nover\n", "nothing of the engine's on the standard output"
    text = engine.log.read_text()
    for line in ("a line of Python", "a line of a child", "Starting to load the model"):
        assert line in text
        assert line not in engine.said()
    assert engine.log.stat().st_mode & 0o777 == 0o600


def test_verbose_shows_it_too(tmp_path: Path) -> None:
    engine = Engine(tmp_path, verbose=True)
    engine.end()
    assert "a line of a child\nStarting to load the model\n" in engine.said()
    assert "a line of a child" in engine.log.read_text()


@pytest.mark.parametrize("verbose", [False, True])
def test_its_end_is_shown_once_when_it_fails(tmp_path: Path, verbose: bool) -> None:
    engine = Engine(tmp_path, verbose, fails=True)
    engine.end()
    assert engine.said().count("a line of a child") == 1
    assert "ValueError: it failed" in engine.said(), "the error itself is not hidden in the file"
    assert (f"triptych: the end of {engine.log}:" in engine.said()) is not verbose


def test_a_file_that_has_grown_is_begun_anew_under_its_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_log, "MAX_BYTES", 1000)
    monkeypatch.setattr(engine_log, "POLL_S", 0.01)
    log = engine_log.EngineLog(tmp_path / "logs" / "w.log", verbose=False)
    try:
        for round_number in range(3):
            os.write(log.fd, b"x" * 2000 + f"\nround {round_number}\n".encode())
            wait_for(lambda: log.path.stat().st_size == 0)
            assert f"round {round_number}" in (tmp_path / "logs" / "w.log.1").read_text()
        os.write(log.fd, b"Starting to load\n")
        assert log.last_lines() == ["Starting to load"]
    finally:
        log.close()
    assert sorted(path.name for path in log.path.parent.iterdir()) == ["w.log", "w.log.1"]


def test_a_full_disk_does_not_let_it_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_log, "MAX_BYTES", 1000)
    monkeypatch.setattr(engine_log, "POLL_S", 0.01)
    monkeypatch.setattr(engine_log.shutil, "copyfile", no_room)
    log = engine_log.EngineLog(tmp_path / "w.log", verbose=False)
    try:
        os.write(log.fd, b"x" * 2000)
        wait_for(lambda: log.path.stat().st_size == 0)
    finally:
        log.close()
    assert list(tmp_path.iterdir()) == [], "one that is empty goes"


def test_logs_of_ended_workers_are_few_and_those_of_running_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_log, "MAX_ENDED", 2)
    running = engine_log.EngineLog(tmp_path / "running.log", verbose=False)
    os.utime(running.path, (0, 0))
    try:
        for number in range(5):
            ended = engine_log.EngineLog(tmp_path / f"ended-{number}.log", verbose=False)
            os.write(ended.fd, b"x")
            ended.close()
            os.utime(tmp_path / f"ended-{number}.log", (number + 1, number + 1))
        new = engine_log.EngineLog(tmp_path / "new.log", verbose=False)
        os.write(new.fd, b"x")
        new.close()
        os.write(running.fd, b"x")
    finally:
        running.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ended-3.log",
        "ended-4.log",
        "new.log",
        "running.log",
    ]


def test_what_our_own_checks_refuse_needs_no_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with engine_log.kept(tmp_path, "default", "w", verbose=False):
            os.system("echo a line of a child")
            raise ConfigError("a folder is missing")

    with pytest.raises(ConfigError):
        fail()
    assert "a line of a child" not in "".join(capfd.readouterr())
    assert list((tmp_path / "default" / "logs").iterdir()) == []


def test_where_no_file_can_be_made_the_output_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "default").write_text("")
    with engine_log.kept(tmp_path, "default", "w", verbose=False) as stop_telling:
        stop_telling()
        os.system("echo a line of a child")
        terminal.complain("our own")
    out, err = capfd.readouterr()
    assert "a line of a child" in out
    assert "our own" in err


def test_the_told_file_is_found_again(tmp_path: Path) -> None:
    file = tmp_path / "a b.log"
    assert engine_log.log_named_in(f"12:00 INFO triptych.worker: {engine_log.KEPT_IN} {file}") == file
    assert engine_log.log_named_in("the engine writes to you") is None
    file.write_text("\n".join(map(str, range(100))))
    assert engine_log.last_lines(file) == [str(number) for number in range(80, 100)]
    assert engine_log.last_lines(tmp_path / "none") == []


def test_a_phase_keeps_its_beginning() -> None:
    phases.enter("one")
    begun = phases.current()
    phases.enter("one")
    assert phases.current() is begun
    phases.recognise((("marker", "two"),))
    phases.read("a line with a marker in it")
    assert phases.current().name == "two"
    phases.recognise(())
    phases.enter("starting")
