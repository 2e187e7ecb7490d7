"""One rule for the run directory, and processes started by hand that belong to a deployment that is up."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from test_up import EXIT_TIMEOUT_S, Running, ask, triptych, wait_until

from support.processes import CLEAN
from triptych.config.serve import PlaneConfig
from triptych.deploy.record import FOLDER_PREFIX, Record, claimed

QUICK = "model: demo\nfrontend: {port: 0}\nworkers: [{name: epd, span: epd, engine: mock, transfer: shm}]\n"


def up_in(folder: Path) -> tuple[str, str]:
    """Words that start a deployment of one worker."""
    graph = folder / "graph.yaml"
    graph.write_text(QUICK)
    return "up", str(graph)


@contextmanager
def by_hand(folder: Path, *words: str, **variables: str) -> Iterator[str]:
    """The ready line of a process that is started from another terminal, and killed at the end of the block."""
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(folder, **variables)
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline()
        finally:
            process.kill()


def environment(folder: Path, **variables: str) -> dict[str, str]:
    return {**CLEAN, "TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder / "runtime"), **variables}


def said(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "triptych", *words]
    env = environment(folder, **variables)
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, check=False)


def shown(up: Running) -> tuple[str, list[list[str]]]:
    """The URL, and the command lines that it shows, a worker's first and the frontend's last."""
    text = up.read_until("triptych frontend --join")
    url = next(word for word in text.split() if word.startswith("http://"))
    return url, [shlex.split(line) for line in text.splitlines() if " --join" in line]


def health(url: str, key: str = "") -> dict[str, list[str]]:
    request = Request(f"{url.removesuffix('/v1')}/health", headers={"authorization": f"Bearer {key}"})
    with urlopen(request, timeout=10) as answer:
        models = json.load(answer)["models"]
    return {name: [one["name"] for one in model["instances"]] for name, model in models.items()}


@pytest.mark.parametrize("plane", ["local", "nats"])
def test_what_up_shows_adds_a_worker_and_a_frontend(tmp_path: Path, plane: str) -> None:
    with triptych(tmp_path, *up_in(tmp_path), "--plane", plane, "--namespace", "blue") as up:
        url, (worker, frontend) = shown(up)
        with by_hand(tmp_path, *worker, "--instance-name", "second") as ready:
            assert ready.startswith("triptych: ready worker second.")
            wait_until(lambda: sorted(health(url)["demo"]) == ["epd-0", "second"])
            with by_hand(tmp_path, *frontend) as ready:
                second = ready.split()[-1]
                wait_until(lambda: sorted(health(second)["demo"]) == ["epd-0", "second"])
                assert "red circle" in ask(f"{second}/v1", "demo")
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(EXIT_TIMEOUT_S) == 0


def test_a_command_without_join_is_told_of_the_running_deployment(tmp_path: Path) -> None:
    folder = tmp_path / f"{FOLDER_PREFIX}x"
    words = ("worker", "--model", "demo", "--engine", "mock", "--transfer", "shm", "--instance-name", "one")
    with claimed(folder, "default") as write, socket.create_server(("127.0.0.1", 0)) as taken:
        write(Record(pid=os.getpid(), plane=PlaneConfig(run_dir=str(folder))))
        port = str(taken.getsockname()[1])  # so that it ends
        alone = said(tmp_path, *words, "--port", port)
        assert f"a deployment is up in {folder}: to belong to it, give --join" in alone.stderr
        joined = said(tmp_path, *words, "--join", "--port", port)
        assert f"registers in namespace 'default', run directory {folder}" in joined.stderr
        assert "give --join" not in joined.stderr


def test_the_environment_names_the_run_directory_of_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    monkeypatch.setenv("TRIPTYCH_RUN_DIR", str(folder))
    with triptych(tmp_path, *up_in(tmp_path)) as up:
        url, (worker, _) = shown(up)
        assert f"--run-dir={folder}" in worker
        assert f"run directory {folder}, namespace default" in up.errors.read_text()
        command = (
            sys.executable,
            "-m",
            "triptych",
            "worker",
            "--model",
            "demo",
            "--engine",
            "mock",
            "--transfer",
            "shm",
        )
        with by_hand(tmp_path, *command, "--instance-name", "plain", TRIPTYCH_RUN_DIR=str(folder)):
            wait_until(lambda: "plain" in health(url)["demo"])

        second = said(tmp_path, *up_in(tmp_path), TRIPTYCH_RUN_DIR=str(folder))
        assert second.returncode == 2
        assert second.stderr == (
            f"triptych: error: a deployment is up in run directory {folder}, namespace 'default' (process "
            f"{up.process.pid}): add to it by `triptych worker --join` or `triptych frontend --join`, or give this one "
            "a --run-dir or --namespace of its own\n"
        )
        elsewhere = said(tmp_path, *up_in(tmp_path), "--run-dir", "/dev/null/x", TRIPTYCH_RUN_DIR=str(folder))
        assert "run directory /dev/null/x cannot be used" in elsewhere.stderr, "the flag goes first"
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(EXIT_TIMEOUT_S) == 0
    assert list(folder.rglob("up.*")) == [], "its record goes with it"


def test_secrets_of_the_user_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a joined frontend would let in clients without a key."""
    monkeypatch.setenv("TRIPTYCH_API_KEY", "key of clients")
    monkeypatch.setenv("TRIPTYCH_TOKEN", "token of the plane")
    with triptych(tmp_path, *up_in(tmp_path)) as up:
        url, (worker, frontend) = shown(up)
        for words, lacking in ((worker, "TRIPTYCH_TOKEN"), (frontend, "TRIPTYCH_TOKEN")):
            refused = subprocess.run(words, capture_output=True, text=True, env=environment(tmp_path), check=False)
            assert refused.returncode == 2
            assert f"--join: the deployment that is up has a secret of yours: set {lacking} here, too" in refused.stderr
        token = {"TRIPTYCH_TOKEN": "token of the plane"}
        refused = subprocess.run(
            frontend, capture_output=True, text=True, env=environment(tmp_path, **token), check=False
        )
        assert "set TRIPTYCH_API_KEY here, too" in refused.stderr
        with by_hand(tmp_path, *worker, "--instance-name", "second", **token):
            wait_until(lambda: "second" in health(url, "key of clients")["demo"])
        for file in tmp_path.rglob("*"):
            if file.is_file():
                assert "token of the plane" not in (text := file.read_text(errors="replace")), file
                assert "key of clients" not in text, file


def test_join_without_a_deployment_and_with_flags_that_it_sets(tmp_path: Path) -> None:
    words = ("worker", "--join", "--model", "demo", "--engine", "mock")
    alone = said(tmp_path, *words)
    assert alone.returncode == 2
    assert "--join: no deployment of yours is up in " in alone.stderr
    assert "start one with `triptych up`" in alone.stderr
    both = said(tmp_path, *words, "--plane", "local")
    assert "--join takes the plane of the deployment that is up: leave out --plane" in both.stderr


def test_the_folders_of_a_killed_deployment_go_at_the_next_start(tmp_path: Path) -> None:
    with triptych(tmp_path, *up_in(tmp_path), "--plane", "nats") as killed:
        killed.read_until("Ctrl-C stops")
        children = killed.descriptors()
        killed.process.kill()
        killed.process.wait(EXIT_TIMEOUT_S)
        for child in children:
            signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)
    left = {path.name.rpartition("-")[0] for path in tmp_path.iterdir() if path.is_dir()}
    assert {"triptych-up", "triptych-signs"} <= left
    with triptych(tmp_path, *up_in(tmp_path)) as up:
        up.read_until("Ctrl-C stops")
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(EXIT_TIMEOUT_S) == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_frontend_without_workers_says_where_it_looked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = (
        sys.executable,
        "-m",
        "triptych",
        "frontend",
        "--port",
        "0",
        "--run-dir",
        str(folder),
        "--namespace",
        "blue",
    )
    with by_hand(tmp_path, *words) as ready:
        url = ready.split()[-1]
        with pytest.raises(HTTPError) as caught:
            ask(f"{url}/v1", "demo")
        with caught.value as answer:
            message = json.load(answer)["error"]["message"]
        assert message == f"no worker is alive yet (looked in namespace 'blue', run directory {folder}); try again"
