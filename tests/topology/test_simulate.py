"""`triptych simulate` from a trace's file to a table, a document and plots."""

from __future__ import annotations

import json
import random
from xml.etree import ElementTree

import pytest

from triptych.cli.main import main
from triptych.cli.simulate import PROGRESS_S, Progress


def conversations(path, requests=200):
    """A sample in Mooncake's format: turns of 20 conversations, each with all that came before in it."""
    rng = random.Random(1)
    said = [[] for _ in range(20)]
    rows = []
    for number in range(requests):
        blocks = said[rng.randrange(len(said))]
        blocks += [len(rows) * 100 + index for index in range(rng.randint(1, 6))]
        length = 512 * len(blocks) + rng.randint(1, 511)
        row = {"timestamp": number * 300, "input_length": length, "output_length": rng.randint(1, 80)}
        rows.append({**row, "hash_ids": [*blocks, 10**6 + number]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sample(tmp_path):
    return conversations(tmp_path / "sample.jsonl")


def test_requests_that_are_left_out_are_counted(sample, capsys):
    assert main(["simulate", sample, "--policy", "random"]) == 0
    assert "left out" not in capsys.readouterr().out
    with open(sample, "a") as file:
        for lengths in ((0, 5), (600, 0), (-1, 5)):
            row = {"timestamp": 0, "input_length": lengths[0], "output_length": lengths[1], "hash_ids": [1, 2]}
            file.write(json.dumps(row) + "\n")
    assert main(["simulate", sample, "--policy", "random"]) == 0
    assert "200 requests in 60 s (3 left out: no prompt or no output); " in capsys.readouterr().out


def test_policies_and_modes_side_by_side(sample, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--workers", "4", "--policy", "kv", "--policy", "round-robin", "--mode", "EPD,EP/D", "--speed", "4,8"]
    assert main(["simulate", sample, *words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split()[:3] for line in printed.splitlines() if line.startswith("EP")]
    assert rows == [
        [mode, policy, speed] for mode in ("EPD", "EP/D") for speed in "48" for policy in ("kv", "round-robin")
    ]
    document = json.loads((out / "simulation.json").read_bytes())
    assert document["requests"] == 200
    kv, in_turns = document["outcomes"][:2]
    assert kv["hit_share"] > in_turns["hit_share"] + 0.2
    assert kv["ideal_hit_share"] >= kv["hit_share"]
    assert 0 < kv["ttft_s"]["p50"] <= kv["ttft_s"]["p90"] <= kv["ttft_s"]["p99"]
    assert kv["workers"] == {"epd": 4}
    plots = sorted(path.name for path in out.glob("*.svg"))
    assert plots == ["hits-by-load.svg", "ttft-at-4.svg", "ttft-at-8.svg", "ttft-by-load.svg"]
    for plot in plots:
        lines = ElementTree.fromstring((out / plot).read_text()).iter("{http://www.w3.org/2000/svg}polyline")
        assert len(list(lines)) == 4


def test_saturation_is_where_the_share_of_good_requests_falls(sample, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--workers", "2", "--policy", "round-robin", "--find-saturation", "round-robin", "--ttft-target-s", "1"]
    assert main(["simulate", sample, *words, "--out", str(out)]) == 0
    assert "round-robin is saturated at" in capsys.readouterr().out
    below, _, at, above = json.loads((out / "simulation.json").read_bytes())["outcomes"]
    assert at["goodput_share"] >= 0.9 > above["goodput_share"]
    assert below["speed"] == pytest.approx(0.8 * at["speed"])


def test_the_same_is_printed_twice(sample, capsys):
    printed = []
    for _ in range(2):
        assert main(["simulate", sample, "--policy", "random,power-of-two", "--mode", "E/P/D", "--speed", "6"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "best"], "--policy best: unknown; known: kv,"),
        (["--mode", "PD"], "--mode PD: unknown; did you mean EPD? Known: EPD, E/PD"),
        (["--speed", "0"], "--speed 0: a number above 0"),
        (["--profile", "b200"], "unknown profile b200; known: llama-8b-h100"),
        (["--workers", "2", "--mode", "E/P/D"], "--workers 2: mode E/P/D needs at least 3"),
        (["--split", "e=1", "--mode", "E/PD"], "--split e=1: mode E/PD wants e=N,pd=N"),
        (["--find-saturation", "kv", "--ttft-target-s", "0.0001"], "met at no speed"),
        (["--out", "/dev/null/x"], "--out /dev/null/x: cannot be made"),
        (["--workers", "0"], "--workers 0"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_one_line(sample, capsys, words, said):
    assert main(["simulate", sample, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["--policy", "best"], ["--mode", "PDE"], ["--speed", "0"], ["--find-saturation", "best"]]
)
def test_a_wrong_flag_is_refused_before_the_trace_is_read(tmp_path, capsys, words):
    assert main(["simulate", str(tmp_path / "nothing.jsonl"), *words]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"triptych: error: {' '.join(words)}: ")
    assert not told.out


def test_how_far_a_run_has_come_is_told_every_second(capsys):
    now = [0.0]
    tell = Progress(200, quiet=False, clock=lambda: now[0])
    for done, passed_s in enumerate((0.2, 0.9, 1.1, 1.5, 2.2), 50):
        now[0] = passed_s * PROGRESS_S
        tell("EPD kv at 4", done)
    assert capsys.readouterr().err.splitlines() == [
        "EPD kv at 4 times the speed: 52 of 200 requests, 26 %",
        "EPD kv at 4 times the speed: 54 of 200 requests, 27 %",
    ]


@pytest.mark.parametrize(
    ("words", "is_terminal", "told"), [((), True, True), (("--quiet",), True, False), ((), False, False)]
)
def test_progress_is_for_terminals(sample, capsys, monkeypatch, words, is_terminal, told):
    monkeypatch.setattr("triptych.cli.simulate.PROGRESS_S", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    assert main(["simulate", sample, "--policy", "random", *words]) == 0
    assert ("EPD random at 1 times the speed: " in capsys.readouterr().err) is told
