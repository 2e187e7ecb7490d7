"""Every file in examples/ works as it stands, and says in its first line what it needs."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import yaml

from triptych.cli.main import main
from triptych.cli.worker import SHARED, with_shared_folder
from triptych.config.serve import PlaneConfig
from triptych.contracts.errors import ConfigError
from triptych.deploy.graph import load_graph

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").iterdir())
GRAPHS = [path for path in EXAMPLES if path.suffix == ".yaml"]
TRACE = ROOT / "examples" / "conversations.jsonl"


def test_nothing_else_is_there():
    assert {*EXAMPLES} == {*GRAPHS, TRACE}


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.name)
def test_a_graph_says_what_it_needs_and_its_flags_are_right(path):
    """Its engines' flags are checked as it is read; tests of the engines start it."""
    graph = load_graph(path)
    engines = {worker.config.engine for worker in graph.workers}
    first, *_ = path.read_text().splitlines()
    assert first.startswith("# Needs ")
    assert ("vLLM" in first) is ("vllm" in engines)
    hands_kv_over = any(worker.config.span in ("p", "ep", "d") for worker in graph.workers)
    assert ("NIXL" in first) is hands_kv_over


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.name)
def test_a_graph_names_no_folder_that_only_some_machines_have(path):
    for worker in yaml.safe_load(path.read_text())["workers"]:
        assert [word for word in worker.get("args", []) if word.startswith("/")] == []


def test_shared_stands_for_a_folder_of_the_run_directory(tmp_path):
    plane = PlaneConfig(run_dir=str(tmp_path / "run"), namespace="one")
    assert with_shared_folder(("--a", "b"), plane) == ("--a", "b")
    assert not (tmp_path / "run").exists()
    folder = str(tmp_path / "run" / "one" / "shared")
    for _ in range(2):
        assert with_shared_folder(("--a", SHARED, f"--b={SHARED}/c"), plane) == ("--a", folder, f"--b={folder}/c")
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    (tmp_path / "two").touch()
    with pytest.raises(ConfigError, match=r"run directory .*two cannot be used"):
        with_shared_folder((SHARED,), PlaneConfig(run_dir=str(tmp_path / "two")))


def test_the_trace_is_simulated_and_what_its_script_writes(capsys):
    written = runpy.run_path(str(ROOT / "scripts" / "example_trace.py"))["rows"]()
    assert [json.loads(line) for line in TRACE.read_text().splitlines()] == written
    assert main(["simulate", str(TRACE), "--workers", "8", "--policy", "kv,round-robin", "--speed", "30"]) == 0
    kv, in_turns = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("EPD"))
    assert float(kv[5].rstrip("%")) > float(in_turns[5].rstrip("%")) + 20
