"""Tests the formats of traces."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from triptych.contracts.errors import ConfigError
from triptych.simulate.chart import Axis, Series, line_chart
from triptych.simulate.trace import MOONCAKE_BLOCK, TraceOptions, TraceRequest, read_trace

WANTED = TraceOptions()


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_mooncake(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 3000, "input_length": 1100, "output_length": 7, "hash_ids": [4, 5, 6]},
        {"timestamp": 1000, "input_length": 1024, "output_length": 5, "hash_ids": [4, 9]},
        {"timestamp": 1500, "input_length": 100, "output_length": 0, "hash_ids": [4]},
    ]
    path = written(tmp_path, "talk.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    trace = read_trace(path, WANTED)
    assert trace.block_size == MOONCAKE_BLOCK
    assert trace.requests == [TraceRequest(0.0, 1024, 5, (4, 9)), TraceRequest(2.0, 1100, 7, (4, 5))]
    assert trace.faster(4).requests[1].arrival_s == 0.5
    assert len(read_trace(path, TraceOptions(limit=1)).requests) == 1


def test_azure(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:16:01.1805900,396,109\n"
    )
    trace = read_trace(written(tmp_path, "azure.csv", text), WANTED)
    assert [one[1:3] for one in trace.requests] == [(374, 44), (396, 109)]
    assert trace.requests[1].arrival_s == pytest.approx(14.5)


def servegen(folder: Path, kind: str = "Gamma") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "chunk-0-trace.csv").write_text(f"0,2.0,0.5,{kind},4.0,0.1\n600,0,,,,\n")
    window = {
        "text_tokens": "{10: 0.5, 20: 0.5}",
        "image_tokens": "{64: 1.0}",
        "image_count": "{0: 0.5, 2: 0.5}",
        "output_tokens": "{5: 1.0}",
    }
    (folder / "chunk-0-dataset.json").write_text(json.dumps({"0": window}))
    return folder


@pytest.mark.parametrize("kind", ["Gamma", "Weibull", "Exponential"])
def test_servegen_requests_come_at_the_stated_rate(tmp_path: Path, kind: str) -> None:
    folder = servegen(tmp_path / "mix", kind)
    trace = read_trace(folder, TraceOptions(duration_s=1200.0, seed=3))
    assert 600 * 2 * 0.85 < len(trace.requests) < 600 * 2 * 1.15
    assert trace.seconds < 600
    assert {one.prompt_tokens for one in trace.requests} == {10, 20, 138, 148}
    assert trace == read_trace(folder, TraceOptions(duration_s=1200.0, seed=3))
    assert trace != read_trace(folder, TraceOptions(duration_s=1200.0, seed=4))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_repeated_media_is_as_configured(tmp_path: Path, share: float) -> None:
    trace = read_trace(servegen(tmp_path / "mix"), TraceOptions(repeated_media=share))
    media = [content for one in trace.requests for content, _ in one.media]
    assert 1 - len(set(media)) / len(media) == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"timestamp": 1}\n'),
        ("b.csv", "a,b\n1,2\n"),
        ("c.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n"),
        ("d.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n"),
        ("e.jsonl", ""),
    ],
)
def test_files_that_are_no_trace_are_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_trace(written(tmp_path, name, text), WANTED)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": []}\n\n{"timestamp": "x"}\n', "line 3: "),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,9,1\n2023-11-16 18:15:47.68,9\n", "line 3: "),
        ("once upon a time\n", "its first line is neither JSON nor a header"),
    ],
)
def test_the_invalid_line_of_a_trace_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"not a trace of a known format .*: {told}"):
        read_trace(written(tmp_path, "a", text), WANTED)


def test_missing_and_empty_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "nothing", WANTED)
    with pytest.raises(ConfigError, match="chunk-N-trace"):
        read_trace(tmp_path, WANTED)


def test_a_chart_has_a_line_for_each_series_within_its_frame() -> None:
    series = [Series("a < b", [(0.01, 1.0), (9.0, 99.0)]), Series("c", [(1.0, 50.0)])]
    text = line_chart("title", Axis("x", logarithmic=True), Axis("y"), series)
    assert text.count("<polyline") == 2
    assert "a &lt; b" in text
    places = [
        float(number)
        for line in text.splitlines()
        if line.startswith("<polyline")
        for pair in line.split('"')[1].split()
        for number in pair.split(",")
    ]
    assert all(math.isfinite(place) and 0 <= place <= 760 for place in places)
