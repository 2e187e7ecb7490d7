"""Compares the frontend of this tree with that of an earlier commit: ``python -m benchmarks.before_after COMMIT``.

Both run at once, each with a mock worker of its own tree, and take turns at the same load. Ratios and differences are
made within a pair. The result is their median over the pairs, with its interval of 95 % confidence, which needs at
least six pairs.
"""

from __future__ import annotations

import argparse
import datetime
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.compare import load_average
from benchmarks.frontend_only import make_model
from benchmarks.machine import describe
from benchmarks.measure import Leg, Summary
from benchmarks.options import RESULTS
from benchmarks.procs import Child
from benchmarks.stats import median
from benchmarks.systems.base import ROOT, Setup
from benchmarks.systems.triptych import TriptychFrontend

RESULT = RESULTS / "before-after.md"
CONFIDENCE = 0.95
TEMPLATE = ROOT / "src" / "triptych" / "demo" / "model"


@dataclass
class OfTree(TriptychFrontend):
    """The frontend and mock worker of the tree at ``source``."""

    source: Path = ROOT

    async def launch(self, part: str, argv: list[str], env: Mapping[str, str | None] | None = None) -> Child:
        return await super().launch(part, argv, {**(env or {}), "PYTHONPATH": str(self.source / "src")})


@dataclass(frozen=True)
class Measure:
    """A figure of a leg. It says whether pairs are compared by their difference or by their ratio."""

    name: str
    concurrency: int
    unit: str
    by_difference: bool = False

    def of(self, summary: Summary) -> float:
        if self.unit == "ms":
            return summary.ttft_ms["p50"]
        if self.unit == "requests/s":
            return summary.requests_per_s
        return summary.cpu_ms_per_kilotoken("frontend")

    def compared(self, before: float, after: float) -> float:
        return after - before if self.by_difference else after / before


MEASURES = (
    Measure("frontend's CPU for 1,000 tokens, 64 at once", 64, "ms/1,000 tokens"),
    Measure("frontend's CPU for 1,000 tokens, 1 at once", 1, "ms/1,000 tokens"),
    Measure("TTFT p50, 1 at once: difference", 1, "ms", by_difference=True),
    Measure("TTFT p50, 1 at once: ratio", 1, "ms"),
    Measure("answers, 16 at once", 16, "requests/s"),
    Measure("answers, 64 at once", 64, "requests/s"),
)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the bounds of the median with at least ``CONFIDENCE``, by order statistics (a binomial of one half).

    Raises ValueError for fewer values than any such interval needs.
    """
    ordered, count = sorted(values), len(values)
    outside = (1 - CONFIDENCE) / 2
    cut, tail = 0, 0.5**count
    if tail > outside:
        raise ValueError(f"{count} pairs are too few for an interval")
    while (tail := tail + math.comb(count, cut + 1) * 0.5**count) <= outside:
        cut += 1
    return ordered[cut], ordered[count - 1 - cut]


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """Yields a working tree of ``commit``, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="triptych-before-") as name:
        folder = Path(name) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


async def measure(before: Path, pairs: int, requests: int, folder: Path) -> dict[Measure, list[tuple[float, float]]]:
    """Returns pairs of (before, after) of every measure."""
    model = make_model(TEMPLATE, folder / "model")
    found: dict[Measure, list[tuple[float, float]]] = {figure: [] for figure in MEASURES}
    async with AsyncExitStack() as stack:
        systems = []
        for name, source in (("before", before), ("after", ROOT)):
            (work := folder / name).mkdir()
            system = OfTree(Setup(model, work), source=source)
            stack.push_async_callback(system.stop)
            await system.start()
            systems.append(system)
        for number in range(-1, pairs):  # the first pair warms up
            await _pair(systems, number, requests, found)
    return found


async def _pair(
    systems: Sequence[OfTree], number: int, requests: int, found: dict[Measure, list[tuple[float, float]]]
) -> None:
    for concurrency in sorted({figure.concurrency for figure in MEASURES}):
        count = requests if concurrency > 1 else max(1, requests // 4)
        leg = Leg("frontend", concurrency, count, warmup=2 * concurrency, seed=number)
        summaries: dict[int, Summary] = {}
        for place in (0, 1) if number % 2 else (1, 0):
            summaries[place] = await systems[place].run(leg)
            if summaries[place].failed:
                raise RuntimeError(f"requests failed: {summaries[place].errors}")
        for figure in MEASURES:
            if figure.concurrency == concurrency and number >= 0:
                found[figure].append((figure.of(summaries[0]), figure.of(summaries[1])))


def rows(found: dict[Measure, list[tuple[float, float]]]) -> list[str]:
    out = []
    for figure, pairs in found.items():
        compared = [figure.compared(*pair) for pair in pairs]
        before, after = (median([pair[side] for pair in pairs]) for side in (0, 1))
        low, high = interval(compared)
        figures = f"{before:.2f} | {after:.2f} | {median(compared):.3f} | {low:.3f} to {high:.3f}"
        out.append(f"| {figure.name} ({figure.unit}) | {figures} |")
    return out


async def main(options: argparse.Namespace) -> str:
    load = f"{load_average():.2f}"
    with tree_of(options.commit) as before, tempfile.TemporaryDirectory(prefix="triptych-before-after-") as name:
        found = await measure(before, options.pairs, options.requests, Path(name))
    facts = {"date": datetime.date.today().isoformat(), "command": f"`{options.command}`", **describe()}
    facts |= {"load average before": load, "pairs": str(options.pairs)}
    head = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    table = [
        "| measure | before | after | after against before | 95 % interval |\n| --- | --- | --- | --- | --- |",
        *rows(found),
    ]
    intro = (
        "Streamed answers of 64 tokens on the instant mock engine. Figures are medians over the pairs; the last two\n"
        "columns are made of pairs, after divided by before (or less it, where it says difference)."
    )
    return "\n\n".join(["# The frontend before and after", head, intro, "\n".join(table)]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before_after", description=__doc__)
    parser.add_argument("commit", help="what this tree is compared with")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--requests", type=int, default=2000, help="of a leg of 64 at once; a quarter of it one by one")
    parser.add_argument("--output", type=Path, default=RESULT)
    chosen = parser.parse_args()
    chosen.command = " ".join(["python -m benchmarks.before_after", *sys.argv[1:]])
    text = uvloop.run(main(chosen))
    print(text)
    chosen.output.write_text(text)
