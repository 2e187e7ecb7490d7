"""Graph files: their meaning, and the errors about wrong ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Mode, Span
from triptych.deploy.commands import child_specs
from triptych.deploy.graph import load_graph, parse_graph
from triptych.deploy.showcase import demo_graph

EXAMPLES = Path(__file__).parents[3] / "examples"

FULL = """
model: demo
served-model-name: shapes
namespace: blue
frontend:
  port: 8123
  enable-multimodal: true
  media-max-items: 3
  router-policy: round-robin
  api-key: geheim
  admin-key: geheimer
workers:
  - name: big
    span: epd
    engine: mock
    replicas: 2
    drain-timeout-s: 1
    args: ["--itl-ms", 2]
    env: {OMP_NUM_THREADS: 1}
  - engine: mock
    model: /other
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "graph.yaml"
    path.write_text(text)
    return path


def test_a_full_graph_becomes_command_lines(tmp_path: Path) -> None:
    graph = load_graph(write(tmp_path, FULL))
    launch = (sys.executable, "-m", "triptych.deploy.child")

    frontend, big_0, big_1, other = child_specs(graph)

    assert graph.modes == (Mode.EPD,)
    assert frontend.command == (
        *launch,
        "frontend",
        "--port=8123",
        "--enable-multimodal",
        "--expected-models=shapes",
        "--media-max-items=3",
        "--router-policy=round-robin",
        "--namespace=blue",
    )
    assert (frontend.secrets, frontend.env) == (
        {"TRIPTYCH_API_KEY": "geheim", "TRIPTYCH_ADMIN_KEY": "geheimer"},
        {},
    )
    assert (big_0.name, big_1.name, other.name) == ("big-0", "big-1", "epd-0")
    assert big_1.command == tuple(word.replace("big-0", "big-1") for word in big_0.command)
    assert big_0.command[:4] == (*launch, "worker")
    assert set(big_0.command[4:11]) == {
        "--model=demo",
        "--engine=mock",
        "--name=big",
        "--instance-name=big-0",
        "--served-model-name=shapes",
        "--drain-timeout-s=1.0",
        "--namespace=blue",
    }
    assert big_0.command[11:] == ("--", "--itl-ms", "2")
    assert big_0.env == {"OMP_NUM_THREADS": "1"}
    assert "--model=/other" in other.command


def test_flags_override_the_graph_file(tmp_path: Path) -> None:
    graph = load_graph(write(tmp_path, FULL), model="/mine", served_model_name="name")

    assert [worker.config.model for worker in graph.workers] == ["/mine", "/other"]
    assert {worker.config.served_model_name for worker in graph.workers} == {"name"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_graph(path: Path) -> None:
    assert load_graph(path).modes


def test_the_demo_without_a_graph_file_is_the_example() -> None:
    assert demo_graph() == load_graph(EXAMPLES / "e-pd.yaml")
    assert demo_graph("demo-audio") == load_graph(EXAMPLES / "e-pd.yaml", model="demo-audio")


WORKER = "model: demo\nworkers: [{engine: mock}]\n"

WRONG = {
    "unknown top key": (WORKER + "modle: x", "modle: unknown key; did you mean model?"),
    "a key like none": (WORKER + "xyz: x", "xyz: unknown key; known: events, frontend, hang-timeout-s, model,"),
    "unknown frontend key": (
        WORKER + "frontend: {prot: 1}",
        "frontend.prot: unknown key; did you mean port?",
    ),
    "unknown worker key": (
        "model: demo\nworkers: [{}, {replica: 1}]",
        "workers[1].replica: unknown key; did you mean replicas?",
    ),
    "python spelling": (WORKER + "frontend: {max_choices: 1}", "frontend.max_choices: unknown key"),
    "bad span": ("model: demo\nworkers: [{span: de}]", "workers[0].span: unknown span; known: e, p, d, ep"),
    "bad carrier": (WORKER + "events: pigeons", "events: unknown events; known: request, zmq, jetstream"),
    "bad policy": (
        WORKER + "frontend: {router-policy: x}",
        "frontend.router-policy: unknown router-policy; known:",
    ),
    "bad type": (WORKER + "frontend: {port: http}", "frontend.port: must be a whole number"),
    "out of range": ("model: d\nworkers: [{replicas: 0}]", "workers[0].replicas: must be at least 1"),
    "no model": ("workers: [{engine: mock}]", "model: missing; name a checkpoint folder or `demo`"),
    "no workers": ("model: demo", "workers: give at least one worker"),
    "half a mode": (
        "model: d\nworkers: [{span: e}]",
        "workers: the spans e make no complete mode; complete are: epd; e + pd; ep + d; e + p + d",
    ),
    "same name": ("model: d\nworkers: [{}, {}]", "workers: two workers are named 'epd'"),
    "shared port": ("model: d\nworkers: [{port: 1, replicas: 2}]", "workers[0].port: 2 replicas cannot share"),
    "not YAML": ("model: [", "line 1: not YAML: "),
    "a key twice": ("model: d\nmodel: e\nworkers: [{engine: mock}]", "line 2: not YAML: model stands twice"),
    "no such date": ("model: 2020-99-99\nworkers: [{engine: mock}]", "not YAML: month must be in 1..12"),
    "too deep": ("[" * 20_000, "not a graph file: it is nested too deeply"),
    "too large": ("#" * (1 << 20) + "\n", "cannot read this graph file: it is larger than 1 MiB"),
    "a list in a flag": ("model: d\nworkers: [{engine: mock, args: [[1]]}]", "workers[0].args[0]: Expected `"),
    "too many": ("model: d\nworkers: [{engine: mock, replicas: 1000}]", "workers[0].replicas: must be at most 256"),
    "a wrong name": ("model: d\nworkers: [{engine: mock, name: a/b}]", "workers[0].name: must match the pattern '^["),
    "not yet": (
        "model: d\nworkers: [{engine: sglang}]",
        "workers[0].engine: engine 'sglang': workers on SGLang are not",
    ),
    "a list": ("[1]", "top level: must hold `key: value` lines"),
    "a scalar section": (WORKER + "frontend: 3", "frontend: must hold `key: value` lines"),
    "no list": ("model: demo\nworkers: 5", "workers: must be a list"),
    "bad engine": ("model: d\nworkers: [{engine: vlm}]", "workers[0].engine: unknown engine 'vlm'; did you mean vllm?"),
    "bad engine flag": (
        "model: demo\nworkers: [{engine: mock}, {name: b, engine: mock, args: [--itl, 5]}]",
        "workers[1].args: unknown engine flag --itl; did you mean --itl-ms?",
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_an_error_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_graph(path)

    message = str(caught.value)
    assert message.startswith(f"{path}: {expected}")
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot read this graph file: No such file"):
        load_graph(tmp_path / "none.yaml")


def test_workers_may_share_keys_by_yaml_merges(tmp_path: Path) -> None:
    text = """
model: demo
workers:
  - &base {name: a, engine: mock, span: epd}
  - &other {<<: *base, name: b}
  - {<<: *other, name: c}
"""
    names = [worker.config.name for worker in load_graph(write(tmp_path, text)).workers]
    assert names == ["a", "b", "c"]


def test_a_misspelled_file_is_suggested(tmp_path: Path) -> None:
    write(tmp_path, WORKER)
    with pytest.raises(ConfigError, match=r"graph\.yml: cannot read .*; did you mean graph\.yaml\?"):
        load_graph(tmp_path / "graph.yml")


def test_an_omitted_name_defaults_to_the_span() -> None:
    graph = parse_graph({"model": "m", "workers": [{"span": "e"}, {"span": "pd"}]})

    assert [worker.config.name for worker in graph.workers] == ["e", "pd"]
    assert graph.workers[1].config.span is Span.PD
    assert graph.modes == (Mode.E_PD,)
