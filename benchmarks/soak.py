"""Sends 20,000 distinct pictures through a split deployment, and checks that nothing fails, leaks or grows.

Run ``python -m benchmarks.soak``. The memory of each process is read after every tenth of the requests; the caches
are so small that they are full before the first reading. Afterwards, with no request in flight, the workers' arenas
must hold exactly what their caches hold, no lease may be open, and the run directory and shared memory must have the
same files as before.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import os
import random
import re
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from benchmarks import report
from benchmarks.compare import load_average, say
from benchmarks.load import Request, run_load
from benchmarks.model import make_random
from benchmarks.options import RESULTS
from benchmarks.procs import resident_mib
from benchmarks.systems.base import ROOT, Setup
from benchmarks.systems.triptych import Triptych
from benchmarks.workloads import PICTURE_SIDE_PX, Prompt, http_request

CACHE_BYTES = 8 << 20
"""The size of the embedding cache in each worker: some 250 embeddings of the model."""
MODES = ("e-pd", "e-p-d", "e-pd-ec-connector")
SETTLE_S = 45.0
"""The longest wait for leases to end; it is longer than a lease."""
_SAMPLE = re.compile(r'^(triptych_\w+)\{[^}]*worker="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)


@dataclass
class Outcome:
    """The results of one mode."""

    title: str
    requests: int = 0
    wall_s: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """The readings of memory: (requests done, resident MiB by process)."""
    encoded: float = 0.0
    unaccounted_bytes: dict[str, float] = field(default_factory=dict)
    """For each worker: the bytes in use in the arena that are not in the cache."""
    leases: float = 0.0
    new_files: list[str] = field(default_factory=list)


def pictures(seed: int) -> Iterator[bytes]:
    """Yields distinct PNGs without end: one row of noise on a plain background, which is cheap to make."""
    rng = random.Random(seed)
    for number in itertools.count():
        image = Image.new("RGB", (PICTURE_SIDE_PX, PICTURE_SIDE_PX), (number % 256, number // 256 % 256, 99))
        image.paste(Image.frombytes("RGB", (PICTURE_SIDE_PX, 8), rng.randbytes(PICTURE_SIDE_PX * 24)), (0, 64))
        target = io.BytesIO()
        image.save(target, "PNG", compress_level=1)
        yield target.getvalue()


async def soak(mode: str, setup: Setup, count: int, concurrency: int, ec_folder: Path) -> Outcome:
    settings: dict[str, object] = {"embedding-cache-bytes": CACHE_BYTES}
    args = ["--ec-storage-path", str(ec_folder)] if mode == "e-pd-ec-connector" else []
    system = Triptych(setup, mode.upper().replace("-", "/"), mode=mode, worker_settings=settings | {"args": args})
    outcome = Outcome(system.title)
    await system.start()
    try:
        run_dir = setup.work_dir / f"triptych-{mode}-1"
        files_before = _files(run_dir)
        source = pictures(0)
        host = system.url.removeprefix("http://")
        step = max(1, count // 20)
        begun = time.perf_counter()
        while outcome.requests < count:
            size = min(step, count - outcome.requests)
            prompts = [Prompt("What is it?", 4, (png,)) for png in itertools.islice(source, size)]
            requests = [Request(http_request(prompt, system.model_name, host), prompt.max_tokens) for prompt in prompts]
            records, _ = await run_load(system.url, requests, concurrency, 600.0)
            outcome.requests += size
            outcome.errors.update(record.error for record in records if record.error)
            outcome.memory.append((outcome.requests, _memory(system)))
            total = sum(outcome.memory[-1][1].values())
            say(f"  {system.title}: {outcome.requests} done, {total:.0f} MiB, {sum(outcome.errors.values())} failed")
        outcome.wall_s = time.perf_counter() - begun
        await _settled(system, outcome)
        outcome.new_files = sorted(_files(run_dir) - files_before)
    finally:
        await system.stop()
    return outcome


async def _settled(system: Triptych, outcome: Outcome) -> None:
    """Waits until no lease is open, or for ``SETTLE_S``; then notes what is left."""
    deadline = time.perf_counter() + SETTLE_S
    while True:
        found = await asyncio.to_thread(_scrape, system.url)
        outcome.leases = sum(found["triptych_transfer_leases"].values())
        used, kept = found["triptych_transfer_arena_used_bytes"], found["triptych_embedding_cache_bytes"]
        outcome.unaccounted_bytes = {worker: used[worker] - kept.get(worker, 0.0) for worker in used}
        outcome.encoded = sum(found["triptych_engine_encoded_media_total"].values())
        clean = not outcome.leases and not any(outcome.unaccounted_bytes.values())
        if clean or time.perf_counter() > deadline:
            return
        await asyncio.sleep(1.0)


def _scrape(url: str) -> dict[str, dict[str, float]]:
    """Returns the metrics: by name, then by worker."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for name, worker, value in _SAMPLE.findall(text):
        found.setdefault(name, {})[worker] = float(value)
    return found


def _memory(system: Triptych) -> dict[str, float]:
    """Returns the resident MiB of each process, by its part of the command line."""
    found: dict[str, float] = {}
    for pid in system.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        name = _part(words)
        if name:
            found[name] = found.get(name, 0.0) + resident_mib([pid])
    return found


def _part(words: list[str]) -> str:
    for word in words:
        if word.startswith("--instance-name="):
            return word.partition("=")[2]
    if "up" in words:
        return "supervisor"
    return "frontend" if "frontend" in words else words[0].rpartition("/")[2]


def _files(run_dir: Path) -> set[str]:
    """Returns the names of the files in the deployment's folder and in shared memory, without process ids."""
    places = [*run_dir.rglob("*"), *Path("/dev/shm").iterdir()]
    return {str(place) for place in places}


def tables(outcomes: list[Outcome]) -> list[str]:
    lines = report.markdown(
        [
            ["mode", "pictures", "encoded", "failed", "req/s", "leases left", "bytes left beside caches", "files left"],
            *(
                [
                    outcome.title,
                    f"{outcome.requests:,}",
                    f"{outcome.encoded:,.0f}",
                    str(sum(outcome.errors.values())),
                    report.number(outcome.requests / outcome.wall_s),
                    f"{outcome.leases:.0f}",
                    f"{sum(outcome.unaccounted_bytes.values()):,.0f}",
                    str(len(outcome.new_files)),
                ]
                for outcome in outcomes
            ),
        ]
    )
    for outcome in outcomes:
        parts = list(outcome.memory[0][1])
        rows = [
            [f"{done:,}", *(report.number(memory.get(part, 0.0)) for part in parts)] for done, memory in outcome.memory
        ]
        lines += ["", f"## {outcome.title}: resident MiB after so many pictures", ""]
        lines += report.markdown([["pictures", *parts], *rows])
        lines += ["", *(f"- {count} x {error}" for error, count in outcome.errors.most_common(5))]
    return lines


async def main(options: argparse.Namespace) -> int:
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="triptych-soak-") as folder:
        work_dir = Path(folder)
        setup = Setup(make_random(ROOT / "src/triptych/demo/model", work_dir / "model"), work_dir)
        outcomes = []
        for mode in options.modes:
            (ec_folder := work_dir / "ec").mkdir(exist_ok=True)
            outcomes.append(await soak(mode, setup, options.pictures, options.concurrency, ec_folder))
    words = " ".join(sys.argv[1:])
    title = f"Soak: {options.pictures:,} distinct pictures, {options.concurrency} at once"
    lines = report.header(title, f"python -m benchmarks.soak {words}".strip(), 1, load, ROOT)
    text = "\n".join([*lines, *tables(outcomes)]) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    return int(any(outcome.errors or outcome.leases or any(outcome.unaccounted_bytes.values()) for outcome in outcomes))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["e-pd", "e-p-d"])
    parser.add_argument("--pictures", type=int, default=20_000, metavar="N")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.md", help="file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(asyncio.run(main(parse())))
