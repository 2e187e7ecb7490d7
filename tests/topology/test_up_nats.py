"""`triptych up --plane nats`: its own NATS server is one of its processes."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest
from test_up import EXIT_TIMEOUT_S, GRAPH, ask, assert_all_end, triptych

from support.nats_server import nats_server, program
from support.processes import command, mock_worker


@pytest.fixture(autouse=True)
def _has_nats_server() -> None:
    program()


def servers_below(pid: int) -> list[int]:
    """A pidfd for each nats-server among the descendants of ``pid``."""
    found = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        if Path(f"/proc/{child}/comm").read_text().strip() == "nats-server":
            found.append(os.pidfd_open(child))
        found += servers_below(child)
    return found


def test_up_starts_a_server_and_leaves_none_behind(tmp_path: Path) -> None:
    with triptych(tmp_path, "up", GRAPH, "--port", "0", "--plane", "nats", "--events", "jetstream") as up:
        summary = up.read_until("Ctrl-C stops")
        url = next(word for word in summary.split() if word.startswith("http://"))
        children = up.descriptors()
        servers = servers_below(up.process.pid)
        assert (len(children), len(servers)) == (3, 1)
        assert "red circle" in ask(url, "demo")

        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(EXIT_TIMEOUT_S) == 0
        assert_all_end([*children, *servers])
    assert [path.name for path in tmp_path.iterdir()] == ["stderr.txt"], "files are left behind"


@pytest.mark.full
def test_a_server_that_is_killed_starts_again_and_requests_go_on(tmp_path: Path) -> None:
    with triptych(tmp_path, "up", GRAPH, "--port", "0", "--plane", "nats") as up:
        summary = up.read_until("Ctrl-C stops")
        url = next(word for word in summary.split() if word.startswith("http://"))
        [server] = servers_below(up.process.pid)
        signal.pidfd_send_signal(server, signal.SIGKILL)
        assert select.select([server], [], [], EXIT_TIMEOUT_S)[0]
        os.close(server)
        while "nats is ready again" not in up.errors.read_text():
            assert "red circle" in ask(url, "demo"), "while it is away"
        while "epd-0" not in up.errors.read_text().split("NATS is back; ")[-1]:
            assert "red circle" in ask(url, "demo")
        children = up.descriptors()
        assert len(children) == 3
        up.process.kill()
        assert_all_end(children)


def test_settings_of_another_server_are_refused(tmp_path: Path) -> None:
    with triptych(tmp_path, "up", GRAPH, "--plane", "nats", "--nats-ca", "ca.pem") as up:
        assert up.process.wait(EXIT_TIMEOUT_S) == 2
        assert "nats-ca is for a NATS server of your own" in up.errors.read_text()


@pytest.mark.parametrize("words", [("frontend", "--port", "0"), mock_worker()[:-1]], ids=["frontend", "worker"])
def test_wrong_credentials_end_a_process_in_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    with nats_server(tmp_path, "authorization { token: right }") as server:
        ended = command(*words, "--plane", server.url, run_dir=tmp_path, env={"TRIPTYCH_NATS_TOKEN": "wrong"})
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("triptych: error: the NATS server at nats://127.0.0.1:")
    assert "refuses these credentials" in last
    assert "wrong" not in last
