"""Writes results as Markdown and JSON: medians over rounds, and ratios made within rounds."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.compare import Cell, Comparison
from benchmarks.measure import Summary
from benchmarks.stats import median, median_ratio, spread

BASELINES = {
    "vllm-server": "vLLM server",
    "vllm-server-sp": "vLLM server, single-process",
    "raw-engine": "raw AsyncLLM",
}
_RATIOS: tuple[Callable[[Summary], float], ...] = (
    lambda summary: summary.requests_per_s,
    lambda summary: summary.ttft_ms["p50"],
    lambda summary: summary.cpu_ms_per_request,
)
HOW = """\
Every figure is the median over the rounds. A ratio is made within a round, system over baseline, and then the
median over the rounds is taken: requests per second (above 1 is better) · TTFT p50 (below 1 is better) ·
CPU per request (below 1 is better). ITL is the time between two events with text. CPU counts all processes of
a system; the raw engine's includes its driver, which is the program itself. A request counts as an error
unless it has exactly the number of tokens that was asked for."""

Table = list[list[str]]


def header(title: str, command: str, rounds: int, load: float, peers: Path) -> list[str]:
    facts = machine.describe()
    rows = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"`{command}`",
        **facts,
        "load average before": f"{load:.2f}",
        "versions": _listing(machine.versions()),
        "versions of peers": _listing(machine.peer_versions(peers)) or "not installed",
        "rounds": str(rounds),
    }
    return [f"# {title}", "", *(f"- {name}: {value}" for name, value in rows.items()), ""]


def _listing(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def serving_tables(result: Comparison) -> list[str]:
    lines = [HOW, ""]
    for workload in dict.fromkeys(cell.workload for cell in result.cells):
        lines += [f"## {workload}", "", *markdown(_workload_table(result, workload)), ""]
    return [*lines, *_not_run(result), "## Start-up, memory, idle", "", *markdown(_footprint(result)), ""]


def _workload_table(result: Comparison, workload: str) -> Table:
    table = [
        [
            *("at once", "system", "req/s", "tokens/s", "TTFT p50 / p90 / p99 ms", "ITL p50 / p90 / p99 ms"),
            *("CPU ms/req", "errors", "noise", *(f"÷ {title}" for title in BASELINES.values())),
        ]
    ]
    cells = [cell for cell in result.cells if cell.workload == workload]
    for concurrency in dict.fromkeys(cell.concurrency for cell in cells):
        level = [cell for cell in cells if cell.concurrency == concurrency]
        for system, title in result.titles.items():
            if mine := [cell for cell in level if cell.system == system]:
                against = [ratios(level, system, baseline) for baseline in BASELINES]
                table.append([str(concurrency), title, *figures(mine), *against])
    return table


def figures(cells: list[Cell]) -> list[str]:
    """Returns the figures of one system at one leg: req/s, tokens/s, TTFT, ITL, CPU ms/req, errors and noise."""
    summaries = [cell.summary for cell in cells]
    rates = [summary.requests_per_s for summary in summaries]
    return [
        number(median(rates)),
        number(median([summary.tokens_per_s for summary in summaries])),
        percentiles(summary.ttft_ms for summary in summaries),
        percentiles(summary.itl_ms for summary in summaries),
        number(median([summary.cpu_ms_per_request for summary in summaries])),
        str(sum(summary.failed for summary in summaries)),
        f"±{100 * spread(rates):.0f} %",
    ]


def ratios(
    level: list[Cell],
    system: str,
    baseline: str,
    compared: Sequence[Callable[[Summary], float]] = _RATIOS,
) -> str:
    """Returns ``system`` divided by ``baseline``, within rounds, for each of ``compared``; a dash if there is none."""
    if system == baseline or not any(cell.system == baseline for cell in level):
        return "–"
    rounds = sorted({cell.round for cell in level})
    found = {(cell.system, cell.round): cell.summary for cell in level}

    def values(name: str, of: Callable[[Summary], float]) -> list[float | None]:
        return [of(found[name, turn]) if (name, turn) in found else None for turn in rounds]

    return " · ".join(f"{median_ratio(values(system, of), values(baseline, of)):.2f}" for of in compared)


def _footprint(result: Comparison) -> Table:
    table = [["system", "start-up s", "memory MiB", "idle cores"]]
    for name, parts in result.startup_s.items():
        memory = result.memory_mib.get(name, {})
        started, resident = number(sum(parts.values())), number(sum(memory.values()))
        table.append([result.titles[name], started, resident, f"{result.idle_cores[name]:.2f}"])
    return table


def _not_run(result: Comparison) -> list[str]:
    rows = [f"- {result.titles[name]}: not run: {why}" for name, why in result.not_run.items()]
    return ["## Not run", "", *rows, ""] if rows else []


def frontend_tables(result: Comparison) -> list[str]:
    table = [
        [
            *("at once", "system", "req/s", "tokens/s", "TTFT p50 / p90 / p99 ms", "ITL p50 / p90 / p99 ms"),
            *("frontend CPU ms per 1,000 tokens", "worker CPU", "load generator CPU", "events per token"),
            *("frontend memory MiB", "frontend start-up s", "errors", "tokens/s ÷ Dynamo"),
        ]
    ]
    for concurrency in dict.fromkeys(cell.concurrency for cell in result.cells):
        level = [cell for cell in result.cells if cell.concurrency == concurrency]
        systems = [system for system in result.titles if any(cell.system == system for cell in level)]
        table += [[str(concurrency), *_frontend_row(result, level, system)] for system in systems]
    note = "vLLM's own server has no mock engine: not applicable. CPU is in ms per 1,000 tokens."
    return [HOW, "", note, "", *markdown(table), "", *_not_run(result)]


def _frontend_row(result: Comparison, level: list[Cell], system: str) -> list[str]:
    mine = [cell for cell in level if cell.system == system]
    summaries = [cell.summary for cell in mine]
    rates, tokens, ttft, itl, _, errors, _ = figures(mine)
    load = [1e6 * s.load_cpu_s / (s.tokens_per_s * s.wall_s) for s in summaries if s.tokens_per_s]
    return [
        *(result.titles[system], rates, tokens, ttft, itl),
        number(median([summary.cpu_ms_per_kilotoken("frontend") for summary in summaries])),
        number(median([summary.cpu_ms_per_kilotoken("worker") for summary in summaries])),
        number(median(load)),
        f"{median([summary.events_per_token for summary in summaries]):.2f}",
        number(result.memory_mib.get(system, {}).get("frontend", math.nan)),
        f"{result.startup_s[system]['frontend']:.2f}",
        errors,
        ratios(level, system, "dynamo").split(" ")[0],
    ]


def number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def percentiles(rounds: Iterable[dict[str, float]]) -> str:
    every = list(rounds)
    return " / ".join(number(median([figures[name] for figures in every])) for name in ("p50", "p90", "p99"))


def markdown(table: Table) -> list[str]:
    first, *rest = table
    return [f"| {' | '.join(row)} |" for row in (first, ["---"] * len(first), *rest)]


def _plain(result: Comparison | dict[str, Comparison]) -> dict[str, object]:
    if isinstance(result, Comparison):
        return dataclasses.asdict(result)
    return {name: dataclasses.asdict(value) for name, value in result.items()}


def write(folder: Path, name: str, lines: list[str], result: Comparison | dict[str, Comparison]) -> Path:
    """Writes ``name``.md for people, and ``name``.json with every leg of every round."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(_plain(result), indent=1) + "\n")
    target = folder / f"{name}.md"
    target.write_text("\n".join(lines).rstrip() + "\n")
    return target
