"""A start that takes a while is watched: what is done is told, and what the engine writes is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from test_up import EXIT_TIMEOUT_S, children_of, triptych, wait_until

from support.processes import CLEAN

HELD = "model: demo\nfrontend: {port: 0}\nworkers: [{name: w, engine: mock, transfer: shm, args: [--start-s, 3]}]\n"


def test_up_passes_on_what_a_starting_worker_does(tmp_path: Path) -> None:
    graph = tmp_path / "graph.yaml"
    graph.write_text(HELD)
    with triptych(tmp_path, "up", str(graph)) as up:
        up.read_until("Ctrl-C stops")
        said = up.errors.read_text()
        assert "w-0      | triptych: not ready after " in said
        assert "s: holding the start up (--start-s) (" in said
        [log] = tmp_path.glob("triptych-up-*/default/logs/w-0-*.log")
        assert f"the engine writes to {log}\n" in said

        with log.open("a") as file:
            file.write("the engine's last words\n")
        worker = next(pid for pid in children_of(up) if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)
        wait_until(
            lambda: f"w-0      | the end of {log}:\nw-0      |   the engine's last words\n" in up.errors.read_text()
        )
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(EXIT_TIMEOUT_S) == 0


def test_a_worker_by_hand_says_it_too_until_it_is_stopped(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "triptych", "worker", "--model", "demo", "--engine", "mock", "--transfer", "shm"]
    env = {**CLEAN, "TRIPTYCH_RUN_DIR": str(tmp_path / "run")}
    errors = tmp_path / "stderr"
    with errors.open("wb") as stream:
        process = subprocess.Popen(
            [*words, "--", "--start-s", "60"], stdout=subprocess.PIPE, stderr=stream, text=True, env=env
        )
    try:
        wait_until(lambda: errors.read_text().count("holding the start up") >= 2, 30)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=EXIT_TIMEOUT_S)
        assert (process.returncode, out) == (128 + signal.SIGTERM, "")
        assert errors.read_text().endswith("triptych: stopped while starting (SIGTERM)\n")
    finally:
        process.kill()
