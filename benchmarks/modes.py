"""Compares the modes on this machine: EPD, E/PD (also over vLLM's EC connector), EP/D and E/P/D.

There are two models of random weights. With *tiny* a split gains nothing, so that it shows the cost. *heavy* has a
vision tower that takes most of the time, as real ones do, so that a split should pay.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.compare import Cell, Comparison, compare
from benchmarks.measure import Leg, Summary
from benchmarks.model import make_random, widen_tower
from benchmarks.report import figures, markdown, ratios
from benchmarks.stats import median_ratio
from benchmarks.systems.base import Setup
from benchmarks.systems.triptych import Triptych

BASELINE = "epd"
MODES = ("epd", "epd-2-threads", "e-pd", "e-pd-ec-connector", "ep-d", "e-p-d")
TOWER = {"depth": 6, "width": 512, "heads": 8}
"""The tower of the heavy model: a picture takes about 90 ms on one core, as long as all tokens of its answer."""
HOW = """\
Every figure is the median over the rounds; a ratio is made within a round, mode over EPD, and then the median is
taken: requests per second (above 1 is better) · TTFT p50 · ITL p99 · CPU per request (below 1 is better). Every
engine and encoder has one thread; *EPD, 2 threads* is EPD whose engine may use both cores. CPU counts all processes
of a deployment. *images-heavy*: requests with one to four pictures of their own, and beside them texts of 256 tokens,
four at a time. Requests and tokens per second are those of both together until all are answered; TTFT is that of the
pictures, and ITL that of the texts while pictures are under way. *image-repeated*: four of five requests have the same
picture."""


@dataclass(frozen=True)
class Model:
    """A model and the legs that are measured on it."""

    name: str
    make: Callable[[Path, Path], Path]
    """Makes the model from (template checkpoint, new folder)."""
    legs: tuple[Leg, ...]
    modes: tuple[str, ...] = MODES


def _heavy(template: Path, folder: Path) -> Path:
    return make_random(widen_tower(template, folder.with_name("widened"), **TOWER), folder)


MODELS = (
    Model(
        "tiny",
        make_random,
        (
            Leg("text", 1, requests=60, warmup=4, seed=0),
            Leg("image-distinct", 1, requests=60, warmup=4, seed=0),
            Leg("image-distinct", 8, requests=200, warmup=16, seed=0),
            Leg("image-repeated", 8, requests=200, warmup=16, seed=0),
        ),
        tuple(mode for mode in MODES if mode != "epd-2-threads"),
    ),
    Model(
        "heavy",
        _heavy,
        (
            Leg("images-heavy", 4, requests=32, warmup=4, seed=0, beside=4, beside_requests=32),
            Leg("image-distinct", 4, requests=40, warmup=4, seed=0),
            Leg("image-repeated", 4, requests=60, warmup=4, seed=0),
        ),
    ),
)


async def measure(model: Model, template: Path, work_dir: Path, modes: Iterable[str], rounds: int) -> Comparison:
    """Starts all ``modes`` of ``model`` and measures its legs on each, in turns."""
    with _folder_for_embeddings() as folder:
        setup = Setup(model.make(template, work_dir / f"model-{model.name}"), work_dir)
        systems = {mode: _system(mode, setup, folder) for mode in model.modes if mode in modes}
        legs = [[replace(leg, seed=number) for leg in model.legs] for number in range(rounds)]
        return await compare(systems, legs)


def _system(mode: str, setup: Setup, ec_folder: Path) -> Triptych:
    threads = 2 if mode.endswith("2-threads") else 1
    graph = mode.removesuffix("-2-threads")
    title = "/".join(part.upper() for part in graph.removesuffix("-ec-connector").split("-"))
    title += ", EC connector" if graph.endswith("-ec-connector") else ", 2 threads" if threads == 2 else ""
    settings = {"args": ["--ec-storage-path", str(ec_folder)]} if graph.endswith("-ec-connector") else {}
    return Triptych(setup, title, mode=graph, threads=threads, worker_settings=settings)


@contextmanager
def _folder_for_embeddings() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="triptych-bench-ec-") as folder:
        yield Path(folder)


def tables(results: dict[str, Comparison]) -> list[str]:
    lines = [HOW, ""]
    for model, result in results.items():
        for workload, concurrency in dict.fromkeys((cell.workload, cell.concurrency) for cell in result.cells):
            cells = [cell for cell in result.cells if (cell.workload, cell.concurrency) == (workload, concurrency)]
            lines += [f"## {model}: {workload}, {concurrency} at once", "", *markdown(_table(result, cells)), ""]
        lines += [f"## {model}: pictures that come again", "", *markdown(_repeated(result)), ""]
        lines += [f"- {result.titles[mode]}: not run: {why}" for mode, why in result.not_run.items()]
    return lines


def _table(result: Comparison, cells: list[Cell]) -> list[list[str]]:
    table = [
        [
            *("mode", "req/s", "tokens/s", "TTFT p50 / p90 / p99 ms", "ITL p50 / p90 / p99 ms", "CPU ms/req"),
            *("errors", "noise", "÷ EPD: req/s · TTFT p50 · ITL p99 · CPU"),
        ]
    ]
    for mode, title in result.titles.items():
        if mine := [cell for cell in cells if cell.system == mode]:
            table.append([title, *figures(mine), ratios(cells, mode, BASELINE, _COMPARED)])
    return table


_COMPARED: tuple[Callable[[Summary], float], ...] = (
    lambda summary: summary.requests_per_s,
    lambda summary: summary.ttft_ms["p50"],
    lambda summary: summary.itl_ms["p99"],
    lambda summary: summary.cpu_ms_per_request,
)


def _repeated(result: Comparison) -> list[list[str]]:
    """Returns the TTFT p50 of repeated pictures over that of distinct ones, in the same mode and round."""
    table = [["mode", "TTFT p50, repeated ÷ distinct"]]
    for mode, title in result.titles.items():
        mine = [cell for cell in result.cells if cell.system == mode and cell.concurrency > 1]
        by_workload = {
            workload: {cell.round: cell.summary.ttft_ms["p50"] for cell in mine if cell.workload == workload}
            for workload in ("image-repeated", "image-distinct")
        }
        repeated, distinct = by_workload["image-repeated"], by_workload["image-distinct"]
        if rounds := sorted(repeated.keys() & distinct.keys()):
            share = median_ratio([repeated[turn] for turn in rounds], [distinct[turn] for turn in rounds])
            table.append([title, f"{share:.2f}"])
    return table
