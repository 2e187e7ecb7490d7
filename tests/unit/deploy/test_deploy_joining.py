"""The lines that `triptych up` prints start the same processes as the graph, on the deployment's plane."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from triptych.cli.main import _split_at_dashes, build_parser
from triptych.cli.options import read_options
from triptych.config.serve import FrontendConfig, JoinConfig, PlaneConfig, WorkerConfig
from triptych.config.transfer import TransferConfig
from triptych.deploy.graph import Graph, parse_graph
from triptych.deploy.joining import instructions

_GRAPH = {
    "model": "demo",
    "served-model-name": "my shapes",
    "run-dir": "/run/a place",
    "namespace": "blue",
    "frontend": {
        "port": 8000,
        "api-key": "secret of clients",
        "admin-key": "secret of admins",
        "enable-multimodal": True,
    },
    "workers": [
        {"name": "enc", "span": "e", "engine": "encoder", "replicas": 2},
        {
            "name": "pd",
            "span": "pd",
            "port": 7777,
            "transfer": "shm",
            "args": ["--max-model-len", 2048],
            "env": {"X": "a b", "TRIPTYCH_TOKEN": "secret of the plane"},
        },
    ],
}


def graph() -> Graph:
    return parse_graph(_GRAPH)


def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    monkeypatch.setattr(sys, "argv", ["/x/__main__.py", "up"])
    lines = [line for line in instructions(graph()).splitlines() if line.startswith("  ")]
    return [shlex.split(line) for line in lines]


def test_instructions_add_each_kind_of_worker_and_a_frontend(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, other, frontend = commands(monkeypatch)
    assert other[:2] == ["env", "X=a b"]
    read = []
    for words in (encoder, other[2:], frontend):
        assert words[:3] == [sys.executable, "-m", "triptych"]
        own, engine_args = _split_at_dashes(words[3:])
        args = build_parser().parse_args(own)
        assert read_options(args, JoinConfig).join
        plane = read_options(args, PlaneConfig)
        assert (plane.run_dir, plane.namespace) == ("/run/a place", "blue")
        read.append((args, engine_args))
    for (args, engine_args), node in zip(read, graph().workers, strict=False):
        config = read_options(args, WorkerConfig)
        assert (config.span, config.engine, config.port) == (node.config.span, node.config.engine, 0)
        assert (config.served_model_name, config.instance_name) == ("my shapes", "")
        assert read_options(args, TransferConfig) == node.transfer
        assert engine_args == [str(word) for word in node.placement.args]
    assert read_options(read[2][0], FrontendConfig).enable_multimodal
    assert read_options(read[2][0], FrontendConfig).port == 0


def test_instructions_contain_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "secret of" not in str(commands(monkeypatch))


def test_a_relative_folder_becomes_absolute_for_other_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert f"--model={tmp_path}/model" in instructions(parse_graph({**_GRAPH, "model": "model"}))
