"""Measures the cost of decoding media in child processes and in threads: ``python -m benchmarks.decode``.

Every row decodes the same distinct files in several ways, which take turns, with as many jobs at once as cores: plain
Pillow in as many processes as cores (pictures only; the results stay in those processes), our decoder's functions in
threads of this process, and the sandbox, whose results come to this process, too.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from PIL import Image

from benchmarks.machine import describe
from benchmarks.media_files import film, photograph, sound
from benchmarks.options import RESULTS
from triptych.config.media import MediaLimits
from triptych.contracts.media import Medium, Picture, Sound, Video
from triptych.media.formats.audio import decode_audio
from triptych.media.formats.image import decode_image
from triptych.media.formats.video import decode_video
from triptych.media.sandbox.pool import Sandbox

CORES = len(os.sched_getaffinity(0))
LIMITS = MediaLimits(media_decode_workers=CORES, media_max_bytes=64 << 20)
DECODE: dict[str, Callable[[Medium, MediaLimits], Any]] = {
    "image": decode_image,
    "video": decode_video,
    "audio": decode_audio,
}
RESULT = RESULTS / "decode.md"


@dataclass(frozen=True)
class Load:
    """Files of one kind, ``count`` of which are decoded in a turn."""

    name: str
    media: list[Medium]
    count: int

    @property
    def jobs(self) -> list[Medium]:
        return [self.media[at % len(self.media)] for at in range(self.count)]


def loads() -> list[Load]:
    def pictures(width: int, height: int, format: str) -> list[Medium]:
        return [
            Picture(content_hash=f"{seed}", format=format, data=photograph(width, height, format, seed))
            for seed in range(4)
        ]

    video = Video(
        content_hash="v",
        format="MP4",
        data=film(640, 360, 60),
        width=640,
        height=360,
        frame_indices=tuple(range(0, 1440, 12)),
    )
    tone = Sound(
        content_hash="a",
        format="WAV",
        data=sound(600, 44_100),
        num_samples=600 * 44_100,
        sample_rate=44_100,
        decode_rate=16_000,
    )
    return [
        Load("224 x 224 PNG", pictures(224, 224, "PNG"), 300),
        Load("512 x 512 JPEG", pictures(512, 512, "JPEG"), 300),
        Load("12-megapixel JPEG (4000 x 3000)", pictures(4000, 3000, "JPEG"), 16),
        Load("4K PNG (3840 x 2160)", pictures(3840, 2160, "PNG"), 8),
        Load("60 s video, 640 x 360, 120 frames of 1440", [video], 2),
        Load("10 min WAV, 44.1 kHz to 16 kHz", [tone], 2),
    ]


def plain(data: bytes) -> None:
    with Image.open(BytesIO(data)) as file:
        file.convert("RGB")


async def in_threads(load: Load, threads: ThreadPoolExecutor) -> None:
    loop = asyncio.get_running_loop()
    calls = (loop.run_in_executor(threads, DECODE[medium.kind], medium, LIMITS) for medium in load.jobs)
    await _some_at_once([*calls])


async def in_sandbox(load: Load, sandbox: Sandbox, at_once: int) -> None:
    jobs = iter(load.jobs)

    async def work() -> None:
        for medium in jobs:
            await sandbox.decode(medium, "item")

    await asyncio.gather(*(work() for _ in range(at_once)))


async def _some_at_once(calls: list[asyncio.Future[Any]]) -> None:
    for call in calls:  # the threads bound how many run
        await call


def cpu_s(pids: list[int]) -> float:
    """Returns the CPU time of this process and of ``pids``, which have one thread each, to the nanosecond."""
    children = (int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)
    return time.process_time() + sum(children) / 1e9


async def measure(load: Load, rounds: int, pool: Any, threads: ThreadPoolExecutor, sandbox: Sandbox) -> str:
    clock: dict[str, list[float]] = {"plain": [], "threads": [], "sandbox": []}
    cpu: dict[str, list[float]] = {name: [] for name in clock}
    ways: dict[str, Callable[[], Awaitable[Any]]] = {
        "plain": lambda: asyncio.to_thread(pool.map, plain, [medium.data for medium in load.jobs], 1),
        "threads": lambda: in_threads(load, threads),
        "sandbox": lambda: in_sandbox(load, sandbox, 2 * CORES),
    }
    if load.media[0].kind != "image":
        del ways["plain"]
    await in_sandbox(Load(load.name, load.media, 2 * CORES), sandbox, CORES)  # libraries are loaded
    for number in range(rounds):
        order = list(ways)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            pids = {"plain": [process.pid for process in pool._pool], "sandbox": sandbox.pids}.get(name, [])
            begun, spent = time.perf_counter(), cpu_s(pids)
            await ways[name]()
            clock[name].append((time.perf_counter() - begun) / load.count * 1e3)
            cpu[name].append((cpu_s(pids) - spent) / load.count * 1e3)
    cells = [f"{median(clock[name]):,.2f} / {median(cpu[name]):,.2f}" if name in ways else "–" for name in clock]
    ratio = "–"
    if "plain" in ways:
        ratio = f"{median(a / b for a, b in zip(clock['plain'], clock['sandbox'], strict=True)):.2f}"
    added = median(b - a for a, b in zip(cpu["threads"], cpu["sandbox"], strict=True))
    return f"| {load.name} | {' | '.join(cells)} | {ratio} | {added:+,.2f} |"


async def main(rounds: int) -> list[str]:
    files = loads()
    pool = multiprocessing.get_context("spawn").Pool(CORES)
    sandbox = Sandbox(LIMITS)
    try:
        with ThreadPoolExecutor(CORES) as threads:
            rows = []
            for load in files:
                rows.append(await measure(load, rounds, pool, threads, sandbox))
                print(rows[-1], flush=True)
            return rows
    finally:
        await sandbox.close()
        pool.close()
        pool.join()


HEAD = """\
| medium | plain Pillow, processes | our functions in threads | sandbox | sandbox's rate ÷ plain \
| CPU, sandbox − threads |
| --- | --- | --- | --- | --- | --- |"""


def report(rows: list[str], command: str, load: str) -> str:
    facts = {"date": datetime.date.today().isoformat(), "command": f"`{command}`", **describe()}
    head = "\n".join(f"- {key}: {value}" for key, value in {**facts, "load average before": load}.items())
    return f"""# Decoding: processes of their own beside threads

{head}

Milliseconds a medium, by the clock / of CPU (all processes of the way), medians over the rounds; as many decoders as
cores, all of them busy. Ratios and differences are made within a round. Plain Pillow is
`Image.open(file).convert("RGB")`; its pictures stay in their processes, where the sandbox's end up in this one.

{chr(10).join([HEAD, *rows])}
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    before = f"{os.getloadavg()[0]:.2f}"
    table = uvloop.run(main(options.rounds))
    options.output.write_text(report(table, f"python -m benchmarks.decode --rounds {options.rounds}", before))
