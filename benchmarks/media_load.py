"""Measures whether media block an event loop, and whether memory is bounded: ``python -m benchmarks.media_load``.

It runs a frontend and a worker with the mock engine, which decodes media for real. First comes a mixed load: 4K JPEGs
and PNGs, videos of 60 s and sounds of 10 min, four at once, while short texts run beside them. Then come 64 requests
at once, each with a 12-megapixel JPEG of its own, and the same files by plain Pillow in as many processes as cores,
in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import datetime
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import uvloop

from benchmarks.audio_model import audio_checkpoint
from benchmarks.decode import plain
from benchmarks.machine import describe
from benchmarks.media_files import film, photograph, sound
from benchmarks.options import RESULTS
from benchmarks.procs import Child, free_port, tree
from triptych.config.media import MIB, MediaLimits

RESULT = RESULTS / "media-load.md"
LIMITS = MediaLimits()
CORES = len(os.sched_getaffinity(0))
AT_ONCE = 4
PICTURES = 64
DECODED_BYTES = 512 * MIB
"""``--media-decoded-bytes`` of the run: room for ten of the pictures."""
_READY_S = 60.0


@dataclass
class Outcome:
    """The results of one deployment."""

    worst: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The output of ``benchmarks.watched``, by process."""
    requests: dict[str, list[float]] = field(default_factory=dict)
    """The seconds of each request, by kind."""
    errors: list[str] = field(default_factory=list)
    peak_mib: dict[str, float] = field(default_factory=dict)


class Deployment:
    """A frontend and a mock worker. Their event loops may be watched, which takes a twentieth of the machine."""

    def __init__(self, model: str, folder: Path, *, watched: bool = True) -> None:
        self._model, self._folder, self._watched = model, folder, watched
        self._children: dict[str, Child] = {}
        self.url = f"http://127.0.0.1:{free_port()}"
        self.outcome = Outcome()

    async def __aenter__(self) -> Deployment:
        await self._start("worker", "--model", self._model, "--engine", "mock", "--served-model-name", "m")
        port = self.url.rsplit(":", 1)[1]
        await self._start("frontend", "--port", port, "--enable-multimodal", "--max-body-bytes", str(256 * MIB))
        async with aiohttp.ClientSession() as session:
            for _ in range(600):
                async with session.get(f"{self.url}/ready") as answer:
                    if answer.status == 200:
                        return self
                await asyncio.sleep(0.05)
        raise RuntimeError("the deployment is not ready")

    async def _start(self, name: str, *words: str) -> None:
        file = self._folder / f"{name}.json"
        run = ["benchmarks.watched", str(file)] if self._watched else ["triptych"]
        argv = [sys.executable, "-m", *run, name, *words]
        argv += ["--run-dir", str(self._folder / "run"), "--media-decoded-bytes", str(DECODED_BYTES)]
        argv += ["--media-max-bytes", str(64 * MIB)]
        self._children[name] = await Child.start(name, argv, self._folder)
        await self._children[name].wait_line("triptych: ready", _READY_S)

    async def __aexit__(self, *_: object) -> None:
        for name, child in reversed(self._children.items()):
            self.outcome.peak_mib[name] = _peak_mib([child.pid])
            self.outcome.peak_mib[f"decoders of the {name}"] = _peak_mib(set(tree([child.pid])) - {child.pid})
            await child.stop()
            if self._watched:
                self.outcome.worst[name] = json.loads((self._folder / f"{name}.json").read_text())

    async def run(self, bodies: Iterable[tuple[str, bytes]], at_once: int) -> None:
        """Sends ``bodies`` of (kind, JSON), so many at once."""
        jobs = iter(bodies)
        timeout = aiohttp.ClientTimeout(600)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def work() -> None:
                for kind, body in jobs:
                    begun = time.perf_counter()
                    async with session.post(f"{self.url}/v1/chat/completions", data=body) as answer:
                        text = await answer.text()
                    self.outcome.requests.setdefault(kind, []).append(time.perf_counter() - begun)
                    if answer.status != 200:
                        self.outcome.errors.append(f"{kind}: {answer.status} {text[:200]}")

            await asyncio.gather(*(work() for _ in range(at_once)))


def _peak_mib(pids: Iterable[int]) -> float:
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return total / 1024


def body(kind: str, data: bytes | None) -> bytes:
    """Returns a request of one medium, or of a short text without one."""
    content: list[dict[str, Any]] = [{"type": "text", "text": "what is it?"}]
    if data is not None:
        url = f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
        content.insert(0, {"type": f"{kind}_url", f"{kind}_url": {"url": url}})
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 4}).encode()


def varied(data: bytes, number: int) -> bytes:
    """Returns the same medium with another content hash: it has a few more bytes, which no reader uses."""
    return data + number.to_bytes(4, "little")


async def mixed(folder: Path, model: str, media: dict[str, tuple[str, bytes]], each: int) -> Outcome:
    """Sends ``each`` requests for every one of ``media`` (name to kind and file), while short texts run beside them."""
    bodies = [(name, body(kind, varied(data, at))) for at in range(each) for name, (kind, data) in media.items()]
    async with Deployment(model, folder) as deployment:
        await deployment.run([("warm-up", bodies[at][1]) for at in range(len(media))], 1)
        load = asyncio.create_task(deployment.run(bodies, AT_ONCE))
        while not load.done():
            await deployment.run([("text beside them", body("", None))], 1)
            await asyncio.sleep(0.02)
        await load
    return deployment.outcome


async def many(folder: Path, rounds: int, files: list[bytes]) -> tuple[Outcome, list[float], list[float]]:
    """Returns (outcome, pictures/s of the deployment and of plain Pillow) of each round, and a last, watched one."""
    pool = multiprocessing.get_context("spawn").Pool(CORES)
    ours, bare = [], []
    warm_up = [("warm-up", body("image", varied(files[0], rounds * PICTURES + at))) for at in range(2 * CORES)]

    def unique(number: int) -> list[bytes]:
        return [varied(data, number * PICTURES + at) for at, data in enumerate(files)]

    async with Deployment("demo", folder, watched=False) as deployment:
        await deployment.run(warm_up, CORES)
        for number in range(rounds):
            begun = time.perf_counter()
            await asyncio.to_thread(pool.map, plain, unique(number), 1)
            bare.append(PICTURES / (time.perf_counter() - begun))
            bodies = [("12-megapixel JPEG", body("image", data)) for data in unique(number)]
            begun = time.perf_counter()
            await deployment.run(bodies, PICTURES)
            ours.append(PICTURES / (time.perf_counter() - begun))
    pool.close()
    pool.join()
    if deployment.outcome.errors:
        raise RuntimeError(f"requests failed: {deployment.outcome.errors[0]}")
    (watch := folder / "watched").mkdir()
    async with Deployment("demo", watch) as watched:
        await watched.run(warm_up, CORES)
        await watched.run([("12-megapixel JPEG", body("image", data)) for data in unique(0)], PICTURES)
    return watched.outcome, ours, bare


def blocked(outcome: Outcome) -> list[str]:
    return [
        f"| {name} | {process['ticks']:,} | {process['worst_late_s'] * 1e3:.1f} | {process['worst_own_s'] * 1e3:.1f} "
        f"| {process['worst_rest_s'] * 1e3:.1f} | {process['worst_blocked_s'] * 1e3:.1f} |"
        for name, process in sorted(outcome.worst.items())
    ]


def times(outcome: Outcome) -> list[str]:
    return [
        f"| {kind} | {len(took)} | {median(took) * 1e3:,.0f} | {max(took) * 1e3:,.0f} |"
        for kind, took in outcome.requests.items()
    ]


_BLOCKED_HEAD = """\
| loop | timers | latest, ms | of its own doing, ms | neither own nor queued, ms | latest but for the queue, ms |
| --- | --- | --- | --- | --- | --- |"""
_TIMES_HEAD = "| request | count | median, ms | longest, ms |\n| --- | --- | --- | --- |"


def section(title: str, outcome: Outcome) -> list[str]:
    peaks = "\n".join(f"| {name} | {mib:,.0f} |" for name, mib in sorted(outcome.peak_mib.items()))
    return [
        f"## {title}",
        "\n".join([_BLOCKED_HEAD, *blocked(outcome)]),
        "\n".join([_TIMES_HEAD, *times(outcome)]),
        f"| processes | peak of resident memory, MiB |\n| --- | --- |\n{peaks}",
        "Failed: " + ("; ".join(outcome.errors) or "none"),
    ]


async def main(options: argparse.Namespace, load: str) -> str:
    with tempfile.TemporaryDirectory(prefix="triptych-media-load-") as name:
        folder = Path(name)
        pictures = {
            "4K JPEG": ("image", photograph(3840, 2160, "JPEG")),
            "4K PNG": ("image", photograph(3840, 2160, "PNG")),
            "60 s video": ("video", film(640, 360, 60)),
        }
        sounds = {f"10 min WAV ({rate} Hz)": ("audio", sound(600, rate)) for rate in (16_000, 44_100)}
        sizes = {name: len(data) for name, (_, data) in {**pictures, **sounds}.items()}
        audio_model = str(audio_checkpoint(folder / "hearing"))
        parts = []
        for title, model, media in (
            ("Pictures and videos", "demo", pictures),
            ("Sounds", audio_model, sounds),
        ):
            (place := folder / title.split()[0].lower()).mkdir()
            parts += section(title, await mixed(place, model, media, options.each))
        distinct = [photograph(4000, 3000, "JPEG", seed) for seed in range(4)]
        files = [distinct[at % len(distinct)] for at in range(PICTURES)]
        (place := folder / "many").mkdir()
        outcome, ours, bare = await many(place, options.rounds, files)
        ratio = median(a / b for a, b in zip(ours, bare, strict=True))
        parts += section(f"{PICTURES} requests at once with a 12-megapixel JPEG each", outcome)
        parts.append(
            f"Pictures a second, by round: {_list(ours)}; plain Pillow in {CORES} processes: {_list(bare)}; "
            f"ratio {ratio:.2f} (median of the rounds). Without the watch, whose round the tables above are of."
        )
    facts = {"date": datetime.date.today().isoformat(), "command": f"`{options.command}`", **describe()}
    facts["load average before"] = load
    facts["files"] = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in sizes.items())
    facts["limits"] = (
        f"--media-decoded-bytes {DECODED_BYTES / MIB:.0f} MiB, --media-decoded-cache-bytes "
        f"{LIMITS.media_decoded_cache_bytes / MIB:.0f} MiB, --media-decode-memory-mib {LIMITS.media_decode_memory_mib} "
        f"for each of {CORES} decoders"
    )
    head = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    intro = """\
A timer of each event loop is due every 2 ms. "Latest" is how late it was at the worst, with whatever the machine did to
the process meanwhile; "of its own doing" is the most of that which the loop's thread spent on a core, all callbacks of
a turn together; "neither" is what was neither that nor time in the system's queue for a core: waits for the interpreter
lock, above all; "latest but for the queue" is how long media work blocked the loop. Media come as data URLs. Resident
memory counts memory that two processes share in each of them."""
    return "\n\n".join(["# Media under load: event loops and memory", head, intro, *parts]) + "\n"


def _list(rates: list[float]) -> str:
    return ", ".join(f"{rate:.1f}" for rate in rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.media_load", description=__doc__)
    parser.add_argument("--each", type=int, default=6, help="requests of every medium in the mixed loads")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of 64 pictures")
    parser.add_argument("--output", type=Path, default=RESULT)
    chosen = parser.parse_args()
    chosen.command = f"python -m benchmarks.media_load --each {chosen.each} --rounds {chosen.rounds}"
    text = uvloop.run(main(chosen, f"{os.getloadavg()[0]:.2f}"))
    print(text)
    chosen.output.write_text(text)
