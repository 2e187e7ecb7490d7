"""Sends prompts of 60,000 tokens, alone and beside paced streams: ``python -m benchmarks.long_prompts``.

The frontend has one core to itself; the load generator and the workers share another. Triptych and both kinds of
NVIDIA Dynamo's frontend take turns within every round, with the same prompts; each is started for its turn. The mock
workers of both answer with four tokens at once; the worker of Triptych's streams makes 20 tokens a second. A round
takes about two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.compare import say
from benchmarks.load import run_load, run_load_beside
from benchmarks.long_prompts.model import make_model
from benchmarks.long_prompts.report import Round, write
from benchmarks.measure import Leg, Record
from benchmarks.procs import StartError
from benchmarks.stats import percentile
from benchmarks.systems import LONG, create
from benchmarks.systems.base import OTHERS_CORE, ROOT, Setup
from benchmarks.systems.triptych import TriptychLong
from benchmarks.workloads import Prompt, cached_prompts, texts_beside
from triptych.demo import MODEL_DIR

CONCURRENCY = 16
STREAMS, STREAM_TOKENS = 16, 256
LIMIT_S = 90.0
WORK_DIR = ROOT / "build" / "benchmarks" / "work-long-prompts"


async def main(rounds: int, prompts: int, names: Sequence[str], out: Path) -> int:
    shutil.rmtree(WORK_DIR, ignore_errors=True)
    WORK_DIR.mkdir(parents=True)
    setup = Setup(make_model(Path(MODEL_DIR), WORK_DIR / "bench"), WORK_DIR)
    measured: list[Round] = []
    for number in range(rounds):
        this = Round()
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            try:
                await _turn(name, setup, prompts, number, this)
            except StartError as error:
                say(f"{name} is not measured: {error}")
        say(f"round {number + 1}: {this}")
        measured.append(this)
    say(f"wrote {write(out, measured, setup.peers_python)}")
    return 0


async def _turn(name: str, setup: Setup, prompts: int, number: int, this: Round) -> None:
    """Measures one system, which runs alone: an idle system would wake up, and take cache and time."""
    system = create(LONG, name, setup)
    try:
        await system.start()
        summary = await system.run(_leg(prompts, number))
        if isinstance(system, TriptychLong):
            await _beside_streams(system, prompts, number, this)
    finally:
        await system.stop()
    done = summary.requests - summary.failed
    this.per_core_s[name] = done / summary.cpu_s["frontend"]
    this.failed += summary.failed
    if summary.errors:
        say(f"{name}: {summary.errors}")


def _leg(prompts: int, seed: int) -> Leg:
    return Leg("long", CONCURRENCY, prompts, 40, seed, LIMIT_S)


async def _beside_streams(system: TriptychLong, prompts: int, seed: int, this: Round) -> None:
    """Measures streams alone, and again while long prompts come as fast as they are answered."""
    leg = Leg("long", CONCURRENCY, prompts, 0, 1000 + seed, LIMIT_S, beside_requests=STREAMS)
    streams = system.requests_of([Prompt(text.text, STREAM_TOKENS) for text in texts_beside(leg)], system.paced_model)
    alone, _ = await run_load(system.url, streams, STREAMS, LIMIT_S)
    this.alone_p99_ms = _itl_p99_ms(alone, alone)
    before = system.cpu()["frontend"]
    requests = system.requests_of(cached_prompts(leg, False))
    records, beside, _ = await run_load_beside(system.url, requests, CONCURRENCY, LIMIT_S, streams, STREAMS)
    good = [record for record in records if not record.error]
    errors = [record.error for record in (*records, *alone, *beside) if record.error]
    if errors:
        say(f"beside streams: {errors}")
    this.failed += len(errors)
    this.per_s = len(good) / (max(record.end for record in good) - min(record.start for record in good))
    this.beside_p99_ms = _itl_p99_ms(beside, good)
    this.beside_cpu_s = system.cpu()["frontend"] - before


def _itl_p99_ms(streams: Sequence[Record], during: Sequence[Record]) -> float:
    """Returns the p99 of the gaps that end while ``during`` is in progress."""
    begin, end = min(record.start for record in during), max(record.end for record in during)
    gaps = [
        later - earlier
        for record in streams
        for earlier, later in zip(record.stamps, record.stamps[1:], strict=False)
        if begin <= later <= end
    ]
    return 1000 * percentile(gaps, 0.99)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_prompts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=300, help="of each leg")
    parser.add_argument("--systems", nargs="+", choices=list(LONG), default=list(LONG))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    asked = _arguments()
    os.sched_setaffinity(0, {OTHERS_CORE})
    raise SystemExit(uvloop.run(asyncio.wait_for(main(asked.rounds, asked.prompts, asked.systems, asked.out), 1800)))
