"""``plane: nats`` in a graph adds a process, and a secret that no command line shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from triptych.contracts.errors import ConfigError
from triptych.deploy import nats_server
from triptych.deploy.commands import child_specs
from triptych.deploy.graph import Graph, parse_graph
from triptych.deploy.own_plane import planned


def graph(**plane: str) -> Graph:
    workers = [{"name": "w", "engine": "mock", "env": {"X": 1}}]
    return parse_graph({"model": "demo", "run-dir": "/run/x", "workers": workers, **plane})


def test_a_server_comes_first_and_its_secret_is_in_no_environment() -> None:
    server, frontend, worker = planned(graph(plane="nats")).specs
    token = server.secrets["TRIPTYCH_NATS_TOKEN"]
    assert (server.name, server.role) == ("nats", "plane")
    assert server.command[:4] == (sys.executable, "-m", "triptych.deploy.child", "nats")
    port = next(word.removeprefix("--port=") for word in server.command if word.startswith("--port="))
    assert "--run-dir=/run/x" in server.command
    for spec in (frontend, worker):
        assert f"--plane=nats://127.0.0.1:{port}" in spec.command
        assert spec.secrets["TRIPTYCH_NATS_TOKEN"] == token
    assert worker.env["X"] == "1"
    assert len(token) >= 24
    for spec in (server, frontend, worker):
        assert not any(token in word for word in (*spec.command, *spec.env.values()))
    assert planned(graph(plane="nats")).specs[0].secrets["TRIPTYCH_NATS_TOKEN"] != token


def test_other_planes_get_no_server() -> None:
    for plane in ("local", "nats://elsewhere:4222"):
        one = graph(plane=plane)
        assert planned(one).specs == child_specs(one)


def test_every_process_gets_the_event_carrier() -> None:
    _, frontend, worker = planned(graph(plane="nats", events="jetstream")).specs
    assert "--events=jetstream" in frontend.command
    assert "--events=jetstream" in worker.command
    with pytest.raises(ConfigError, match="--events jetstream needs a NATS server"):
        planned(graph(events="jetstream"))


@pytest.mark.parametrize("name", ["nats_credentials", "nats_ca", "nats_cert", "nats_key"])
def test_settings_of_a_server_elsewhere_are_refused(name: str) -> None:
    one = graph(plane="nats")
    with pytest.raises(ConfigError, match=name.replace("_", "-")):
        planned(replace(one, plane=replace(one.plane, **{name: "file"})))


async def test_a_missing_program_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_server, "PROGRAM", "nats-server-that-is-nowhere")
    with pytest.raises(ConfigError, match=r"triptych\[nats-server\]"):
        async with nats_server.nats_server("127.0.0.1", 0, None, tmp_path, print):
            raise AssertionError("it cannot have started")


async def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    said: list[str] = []
    async with nats_server.nats_server("127.0.0.1", 0, 'a "token" \\ of $signs', tmp_path, said.append) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match="address already in use"):
            async with nats_server.nats_server("127.0.0.1", port, None, tmp_path, said.append):
                raise AssertionError("the port is taken")
    assert any("address already in use" in line for line in said)
    assert list(tmp_path.iterdir()) == [], "its files are gone with it"
