"""`triptych up` and `triptych demo` end to end: real processes of every kind, on the mock engine."""

from __future__ import annotations

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
from urllib.request import Request, urlopen

import pytest

from triptych.demo import MODEL_DIR

GRAPH = str(Path(__file__).parents[2] / "examples" / "mock.yaml")
EXIT_TIMEOUT_S = 15


class Running:
    """A ``triptych`` command; ``errors`` is the file of its standard error."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self.errors = errors

    def read_until(self, text: str) -> str:
        """Its output up to the line that contains ``text``."""
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
        raise AssertionError(f"{text!r} never came; standard error was:\n{self.errors.read_text()}")

    def descriptors(self) -> list[int]:
        """A pidfd for each of its child processes."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [os.pidfd_open(int(child)) for child in children]


@contextmanager
def triptych(folder: Path, *words: str) -> Iterator[Running]:
    """A command in ``folder``, where it also puts its temporary files."""
    errors = folder / "stderr.txt"
    with (
        errors.open("w") as stream,
        subprocess.Popen(
            [sys.executable, "-m", "triptych", *words],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},
        ) as process,
    ):
        try:
            yield Running(process, errors)
        finally:
            if process.poll() is None:
                process.terminate()


def assert_all_end(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        ended, _, _ = select.select([descriptor], [], [], EXIT_TIMEOUT_S)
        os.close(descriptor)
        assert ended, "a process is left behind"


def ask(url: str, model: str, limit_s: float = 10) -> str:
    messages = [{"role": "user", "content": "red circle"}]
    body = {"model": model, "messages": messages, "max_tokens": 50, "temperature": 0}
    headers = {"content-type": "application/json"}
    request = Request(f"{url}/chat/completions", data=json.dumps(body).encode(), headers=headers)
    with urlopen(request, timeout=limit_s) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def listening(port: int) -> set[str]:
    """Sockets that listen on ``port``."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{line[9]}]" for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "0A"}


def listeners(port: int) -> list[int]:
    """Processes of this user that listen on ``port``."""
    sockets = listening(port)
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor) in sockets:
                found.add(int(descriptor.parts[2]))
    return sorted(found)


def wait_until(condition: Callable[[], bool], limit_s: float = 15) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_serves_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    words = ("up", GRAPH, "--port", "0", "--model", str(MODEL_DIR), "--served-model-name", "shapes")
    with triptych(tmp_path, *words) as up:
        summary = up.read_until("Ctrl-C stops")
        url = next(word for word in summary.split() if word.startswith("http://"))
        children = up.descriptors()

        assert "Serving shapes at" in summary
        assert "(mode EPD)" in summary
        assert len(children) == 2
        assert "red circle" in ask(url, "shapes")

        up.process.send_signal(number)
        assert up.process.wait(EXIT_TIMEOUT_S) == 0
        assert_all_end(children)
    assert [path.name for path in tmp_path.iterdir()] == ["stderr.txt"], "the run directory is left behind"


def test_frontends_share_a_port_and_one_that_dies_is_missed_by_nobody_else(tmp_path: Path) -> None:
    graph = tmp_path / "graph.yaml"
    graph.write_text("model: demo\nfrontend: {replicas: 2, port: 0}\nworkers: [{name: epd, span: epd, engine: mock}]\n")
    with triptych(tmp_path, "up", str(graph)) as up:
        summary = up.read_until("Ctrl-C stops")
        url = next(word for word in summary.split() if word.startswith("http://"))
        children = up.descriptors()
        assert len(children) == 3
        port = int(url.split(":")[2].split("/")[0])
        first, second = listeners(port)
        for _ in range(20):
            assert "red circle" in ask(url, "demo")

        before = listening(port)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: before - listening(port))  # what waits at a socket that dies is reset with it
        for _ in range(20):
            assert "red circle" in ask(url, "demo"), "the other one answers"
        wait_until(lambda: len(listeners(port)) == 2)
        assert second in listeners(port)
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(EXIT_TIMEOUT_S) == 0
        assert_all_end(children)


def test_a_worker_whose_event_loop_is_blocked_is_started_again(tmp_path: Path) -> None:
    graph = tmp_path / "graph.yaml"
    graph.write_text(
        "model: demo\nworkers: [{name: epd, span: epd, engine: mock, args: [--poison-token, 198, --poison, hang]}]\n"
    )
    with triptych(tmp_path, "up", str(graph), "--port", "0", "--hang-timeout-s", "2") as up:
        summary = up.read_until("Ctrl-C stops")
        url = next(word for word in summary.split() if word.startswith("http://"))
        worker = next(pid for pid in children_of(up) if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
        with suppress(OSError):
            ask(url, "demo", limit_s=0.2)
        said = "epd-0 hangs, for the first time: no sign of life for 2 s (--hang-timeout-s); it is killed"
        wait_until(lambda: said in up.errors.read_text())
        wait_until(lambda: "epd-0 is ready again" in up.errors.read_text())
        assert not Path(f"/proc/{worker}").exists()


def children_of(up: Running) -> list[int]:
    pid = up.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_supervisor_takes_all_processes_along(tmp_path: Path) -> None:
    with triptych(tmp_path, "up", GRAPH, "--port", "0") as up:
        up.read_until("Ctrl-C stops")
        children = up.descriptors()
        assert len(children) == 2

        up.process.kill()

        assert_all_end(children)


def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with triptych(tmp_path, "up", GRAPH, "--port", str(port)) as up:
            assert up.process.wait(EXIT_TIMEOUT_S) == 1
            last = up.errors.read_text().splitlines()[-1]
    assert last == (
        f"triptych: error: frontend did not start: port {port} on 127.0.0.1 is taken; choose another with --port"
    )


def test_a_missing_model_is_said_in_one_line(tmp_path: Path) -> None:
    with triptych(tmp_path, "up", GRAPH, "--port", "0", "--model", "/nowhere") as up:
        assert up.process.wait(EXIT_TIMEOUT_S) == 1
        last = up.errors.read_text().splitlines()[-1]
    assert last.startswith("triptych: error: epd-0 did not start: ")
    assert "/nowhere" in last


def test_a_wrong_graph_is_a_configuration_error(tmp_path: Path) -> None:
    with triptych(tmp_path, "up", str(tmp_path / "none.yaml")) as up:
        assert up.process.wait(EXIT_TIMEOUT_S) == 2
        lines = up.errors.read_text().splitlines()
    assert lines == [f"triptych: error: {tmp_path}/none.yaml: cannot read this graph file: No such file or directory"]


def test_demo_once_asks_about_a_picture_and_ends(tmp_path: Path) -> None:
    picture = tmp_path / "shapes.png"
    words = ("demo", "--graph", GRAPH, "--port", "0", "--once", "--picture", str(picture))
    with triptych(tmp_path, *words) as demo:
        shown = demo.read_until("print(answer")
        assert demo.process.wait(EXIT_TIMEOUT_S) == 0

    assert picture.read_bytes().startswith(b"\x89PNG")
    for part in ("Question:  ", "Answer:    ", "Expected:  ", "Time by stage (epd@", "encode + prefill", "total"):
        assert part in shown


@pytest.mark.parametrize("about", ["picture", "video", "sound"])
def test_the_examples_of_the_demo_work_as_they_stand(tmp_path: Path, about: str) -> None:
    with triptych(tmp_path, "demo", "--about", about, "--graph", GRAPH, "--port", "0") as demo:
        shown = demo.read_until("Ctrl-C stops")
        question = shown.split("Question:  ")[1].splitlines()[0]
        curl = shown.split("by curl:\n\n")[1].split("\n\nThe same in Python:\n\n")[0]
        python = shown.split("in Python:\n\n")[1].split("\n\nServing ")[0]

        by_curl = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=20, check=True)
        by_python = subprocess.run(
            [sys.executable, "-c", python], capture_output=True, text=True, timeout=40, check=True
        )

    assert question in json.loads(by_curl.stdout)["choices"][0]["message"]["content"]
    assert question in by_python.stdout
