"""Measures how much hostile clients delay honest ones: ``python -m benchmarks.hostile_load``.

Sixteen streams of 20 tokens a second run on a mock worker. Beside them, one after another, hostile loads run for some
seconds each: bodies that are costly to read, long honest prompts, silent connections, and clients that read nothing.
The ITL is compared with that of the streams alone, and ``GET /live`` is requested all the time on separate connections.
Everything happens twice, to see whether memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import multiprocessing
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from benchmarks.attacks import ATTACKS
from benchmarks.compare import load_average
from benchmarks.frontend_only import make_model
from benchmarks.load import Request, run_load
from benchmarks.machine import describe
from benchmarks.measure import Record
from benchmarks.options import RESULTS
from benchmarks.procs import Child, free_port, resident_mib, tree
from benchmarks.stats import percentile
from benchmarks.systems.base import ROOT
from benchmarks.workloads import Prompt, http_request

RESULT = RESULTS / "hostile-load.md"
STREAMS, TOKENS_PER_S = 16, 20
LIVE_INTERVAL_S = 0.05
READY_S = 60.0
SETTLE_S = 3.0
"""The pause between two loads, in which memory is freed."""
CONTEXT = 600_000
"""The context length in tokens: prompts of a megabyte fit."""


@dataclass
class Beside:
    """The streams and probes beside one hostile load."""

    name: str
    itl_p99_ms: float
    longest_gap_ms: float
    live_longest_ms: float
    failed: int
    """The number of streams without all of their tokens, and of probes without a 200."""
    answers: dict[str, int] = field(default_factory=dict)
    """The answers to the hostile clients, by status or kind of error."""


def attack(name: str, url: str, seconds: float, pipe: Connection) -> None:
    """Runs the hostile load ``name`` in a separate process. Sends its begin, its end and the answers."""
    pipe.send("ready")
    pipe.recv()
    begun = time.perf_counter()
    answers = uvloop.run(ATTACKS[name](url, seconds))
    pipe.send((begun, time.perf_counter(), dict(answers)))


@asynccontextmanager
async def deployment(folder: Path, flags: Sequence[str]) -> AsyncIterator[tuple[str, Child]]:
    """Starts a frontend, a worker of the model ``paced`` and one of ``instant``; yields the URL and the frontend."""
    model = make_model(ROOT / "src" / "triptych" / "demo" / "model", folder / "model")
    url = f"http://127.0.0.1:{free_port()}"
    run_dir = ["--run-dir", str(folder / "run")]
    children = []

    async def start(name: str, *words: str) -> Child:
        child = await Child.start(name, [sys.executable, "-m", "triptych", *words], folder)
        children.append(child)
        await child.wait_line("triptych: ready", READY_S)
        return child

    try:
        port = url.rsplit(":", 1)[1]
        frontend = await start("frontend", "frontend", "--port", port, "--enable-multimodal", *run_dir, *flags)
        worker = ["worker", "--engine", "mock", *run_dir]
        itl_ms = f"{1000 / TOKENS_PER_S}"
        await start("paced", *worker, "--model", "demo", "--served-model-name", "paced", "--", "--itl-ms", itl_ms)
        instant = ["--model", str(model), "--served-model-name", "instant"]
        await start("instant", *worker, *instant, "--", "--max-model-len", str(CONTEXT))
        await frontend.wait_http(f"{url}/v1/models", READY_S, contains="instant")
        yield url, frontend
    finally:
        for child in reversed(children):
            await child.stop()


async def streams(url: str, seconds: float, seed: int) -> list[Record]:
    """Runs ``STREAMS`` answers side by side that last about ``seconds``."""
    tokens = int(seconds * TOKENS_PER_S)
    host = url.removeprefix("http://")
    words = " ".join(["how many shapes are there"] * 80)  # the mock engine says them again: each token has text
    prompts = [Prompt(f"{seed} {number} {words}", tokens) for number in range(STREAMS)]
    requests = [Request(http_request(prompt, "paced", host), tokens) for prompt in prompts]
    records, _ = await run_load(url, requests, STREAMS, 3 * seconds + 30)
    return records


async def probe(url: str, until: asyncio.Event, latencies: list[float]) -> int:
    """Asks ``/live`` again and again, each time on a new connection. Returns the number of answers other than 200."""
    host, port = url.removeprefix("http://").split(":")
    failed = 0
    while not until.is_set():
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                failed += b" 200 " not in await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            failed += 1
        latencies.append(time.perf_counter() - begun)
        await asyncio.sleep(LIVE_INTERVAL_S)
    return failed


async def beside(url: str, name: str, seconds: float, seed: int) -> Beside:
    """Measures the streams beside the load ``name``, or alone if that is empty."""
    stop, latencies = asyncio.Event(), list[float]()
    probing = asyncio.create_task(probe(url, stop, latencies))
    running = asyncio.create_task(streams(url, seconds + 4, seed))
    window, answers = (0.0, float("inf")), dict[str, int]()
    if name:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=attack, args=(name, url, seconds, theirs), daemon=True
        )
        process.start()
        await asyncio.to_thread(ours.recv)
        await asyncio.sleep(1.0)  # the streams run
        latencies.clear()
        ours.send("go")
        begun, ended, answers = await asyncio.to_thread(ours.recv)
        window = (begun, ended)
        await asyncio.to_thread(process.join)
    records = await running
    stop.set()
    failed = await probing
    gaps = [
        later - earlier
        for record in records
        for earlier, later in zip(record.stamps, record.stamps[1:], strict=False)
        if later >= window[0] and earlier <= window[1]
    ]
    failed += sum(bool(record.error) for record in records)
    return Beside(name or "alone", 1e3 * percentile(gaps, 0.99), 1e3 * max(gaps), 1e3 * max(latencies), failed, answers)


async def measure(
    names: Sequence[str], seconds: float, folder: Path, flags: Sequence[str]
) -> tuple[list[Beside], list[float]]:
    """Runs all loads twice. Also returns the frontend's resident memory in MiB before, between and after."""
    results, memory = [], []
    async with deployment(folder, flags) as (url, frontend):
        for turn in range(2):
            memory.append(resident_mib(tree([frontend.pid])))
            for number, name in enumerate(["", *names]):
                results.append(result := await beside(url, name, seconds, 100 * turn + number))
                print(_row(result, results[0]), file=sys.stderr, flush=True)
                await asyncio.sleep(SETTLE_S)
        memory.append(resident_mib(tree([frontend.pid])))
    return results, memory


def _row(met: Beside, alone: Beside) -> str:
    answers = ", ".join(f"{kind}: {count:,}" for kind, count in sorted(met.answers.items())) or "–"
    return (
        f"| {met.name} | {met.itl_p99_ms:.1f} | {met.itl_p99_ms / alone.itl_p99_ms:.2f} | {met.longest_gap_ms:.0f} "
        f"| {met.live_longest_ms:.0f} | {met.failed} | {answers} |"
    )


async def main(options: argparse.Namespace) -> str:
    load = f"{load_average():.2f}"
    with tempfile.TemporaryDirectory(prefix="triptych-hostile-") as name:
        results, memory = await measure(options.only or list(ATTACKS), options.seconds, Path(name), options.flag)
    facts = {"date": datetime.date.today().isoformat(), "command": f"`{options.command}`", **describe()}
    facts["load average before"] = load
    facts["frontend's resident memory, MiB"] = (
        f"{memory[0]:.0f} before, {memory[1]:.0f} after the first round, {memory[2]:.0f} after the second "
        f"({100 * (memory[2] / memory[1] - 1):+.1f} %)"
    )
    half = len(results) // 2
    rows = [_row(result, results[at - at % half]) for at, result in enumerate(results)]
    head = (
        "| load beside the streams | ITL p99, ms | against alone | longest gap, ms | `/live` at most, ms | failed "
        "| its answers |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    title = (__doc__ or "").split("\n\n", 1)[1].strip()
    lines = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    return "\n\n".join(["# Hostile loads beside honest streams", lines, title, "\n".join([head, *rows])]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile_load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--only", nargs="+", choices=list(ATTACKS), help="(default: all)")
    parser.add_argument("--flag", action="append", default=[], help="a flag for the frontend, as --flag=--x=y")
    parser.add_argument("--output", type=Path, default=RESULT)
    chosen = parser.parse_args()
    chosen.command = " ".join(["python -m benchmarks.hostile_load", *sys.argv[1:]])
    text = uvloop.run(main(chosen))
    print(text)
    chosen.output.write_text(text)
