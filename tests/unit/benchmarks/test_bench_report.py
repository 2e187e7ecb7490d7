"""Statistics, workloads and the report of the benchmarks."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import report
from benchmarks.compare import Cell, Comparison
from benchmarks.measure import Leg, Record, Summary, summarise
from benchmarks.options import parse
from benchmarks.stats import median, median_ratio, percentile, spread
from benchmarks.workloads import WORKLOADS, http_request, prompts


def test_percentiles_interpolate() -> None:
    assert percentile([4, 1, 3, 2], 0.5) == 2.5
    assert percentile([7], 0.99) == 7
    assert math.isnan(percentile([], 0.5))
    assert median([1, math.nan, 3]) == 2


def test_ratios_are_made_within_rounds() -> None:
    # The third round was ten times slower for both: the ratio of medians would be 1, that of rounds is 2.
    assert median_ratio([20, 40, 2], [10, 20, 1]) == 2
    assert median_ratio([20, None, 30], [10, 10, None]) == 2
    assert math.isnan(median_ratio([1.0], [None]))
    assert spread([90, 100, 130]) == pytest.approx(0.3)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_leg_has_the_same_prompts_every_time_and_no_other_leg_has_them(workload: str) -> None:
    leg = Leg(workload, 4, requests=10, warmup=5, seed=1)
    assert prompts(leg) == prompts(leg)
    assert len(prompts(leg, warmup=True)) == 5
    others = [*prompts(leg, warmup=True), *prompts(Leg(workload, 4, requests=10, warmup=5, seed=2))]
    assert not {(p.text, p.pngs) for p in prompts(leg)} & {(p.text, p.pngs) for p in others}


def test_pictures_are_distinct_or_repeated_as_the_workload_says() -> None:
    distinct = prompts(Leg("image-distinct", 1, requests=10, warmup=0, seed=0))
    assert len({prompt.pngs for prompt in distinct}) == 10
    repeated = [prompt.pngs for prompt in prompts(Leg("image-repeated", 1, requests=10, warmup=0, seed=0))]
    assert max(repeated.count(png) for png in repeated) == 8


def test_a_request_is_http_with_the_picture_in_it() -> None:
    (prompt,) = prompts(Leg("image-distinct", 1, requests=1, warmup=0, seed=0))
    head, _, body = http_request(prompt, "m", "127.0.0.1:1").partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    message = json.loads(body)
    url = message["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        assert image.size == (224, 224)
    assert message["max_tokens"] == prompt.max_tokens
    assert (message["stream"], message["ignore_eos"], message["temperature"]) == (True, True, 0)


def summary(seconds: float) -> Summary:
    records = []
    for _ in range(4):
        record = Record(start=0.0, expected_tokens=2, stamps=[seconds, 2 * seconds])
        record.close(2 * seconds)
        records.append(record)
    return summarise(records, 4 * seconds, {"frontend": seconds}, 0.0)


def comparison() -> Comparison:
    titles = {"triptych": "Triptych", "vllm-server": "vLLM server", "dynamo": "Dynamo"}
    result = Comparison(titles=titles, not_run={"dynamo": "not installed"})
    for number, slower in enumerate((1.0, 1.0, 10.0)):
        result.cells.append(Cell("triptych", number, "text", 16, summary(0.1 * slower)))
        result.cells.append(Cell("vllm-server", number, "text", 16, summary(0.2 * slower)))
    result.startup_s = {"triptych": {"frontend": 1.0}, "vllm-server": {"frontend": 2.0}}
    result.idle_cores = {"triptych": 0.0, "vllm-server": 0.1}
    return result


def test_the_report_has_medians_ratios_and_what_was_not_run() -> None:
    text = "\n".join(report.serving_tables(comparison()))
    (row,) = [line for line in text.splitlines() if line.startswith("| 16 | Triptych |")]
    assert "| 10.0 | 20.0 | 100 / 100 / 100 | 100 / 100 / 100 | 25.0 | 0 |" in row
    assert "2.00 · 0.50 · 0.50" in row
    assert "- Dynamo: not run: not installed" in text


def test_results_are_written_as_markdown_and_json(tmp_path: Path) -> None:
    target = report.write(tmp_path, "x", report.frontend_tables(comparison()), comparison())
    assert "Triptych" in target.read_text()
    assert len(json.loads((tmp_path / "x.json").read_text())["cells"]) == 6


def test_the_header_names_no_host_and_no_path() -> None:
    text = "\n".join(report.header("T", "python -m benchmarks", 3, 0.5, Path("/none/bin/python")))
    assert "cores" in text
    assert "/work" not in text
    assert "not installed" in text


def test_options_have_defaults_for_full_and_quick_runs() -> None:
    full, quick = parse([]), parse(["--quick", "--only", "serving"])
    assert (full.rounds, full.concurrency, full.parts) == (5, (1, 16, 64), ("serving", "frontend", "modes"))
    assert (quick.rounds, quick.concurrency, quick.parts) == (1, (1, 16), ("serving",))
    assert full.serving_leg("text", 1, 0).requests == 24
    assert full.serving_leg("text", 64, 0).requests == 256
    with pytest.raises(SystemExit):
        parse(["--systems", "nothing"])
