"""Sends costly schemas, patterns and stop strings beside running streams, on two real vLLM workers.

``python -m benchmarks.costly_schemas`` sends the cases of ``costly_cases.py``, one a second, while streams run at both
workers, and then asks each worker for a plain answer. It exits with 1 if a case took more than ``LONGEST_ANSWER_S``,
or got a server's error, or if a stream paused for ``LONGEST_GAP_S`` or broke.

Other work on the machine makes streams pause, for seconds if the kernel shares the cores by sessions, as each deployed
process is a session of its own. ``--cpu-group`` runs everything in a control group, which gets its share as a whole,
as a container or a service does: ``mkdir /sys/fs/cgroup/cpu/costly``, with ``cpu.shares`` or ``cpu.weight``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.costly_cases import CASES, Fields

LONGEST_ANSWER_S = 10.0
LONGEST_GAP_S = 0.5
APART_S = 1.0
STREAMS = 4
RESULT = Path(__file__).parent / "results" / "costly-schemas.md"
GRAPH: dict[str, Any] = {
    "model": "demo",
    "frontend": {"port": 0, "plan-header": True, "router-policy": "round-robin"},
    "workers": [{"name": "pd", "span": "epd", "engine": "vllm", "replicas": 2}],
}


@dataclass
class Case:
    """The answer to one costly request."""

    name: str
    status: int = 0
    code: str = ""
    seconds: float = 0.0
    begun: float = 0.0

    @property
    def right(self) -> bool:
        """Whether the request was refused as costly, or answered, and in time."""
        return (
            self.status in (200, 400) or self.code in ("grammars_busy", "grammar_timeout")
        ) and self.seconds <= LONGEST_ANSWER_S


@dataclass
class Streams:
    """The streams that run beside the cases."""

    gaps: list[tuple[float, float]] = field(default_factory=list)
    """Seconds between two pieces of one answer, and when the second came."""
    workers: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    tokens: int = 0


def encoded(fields: Fields) -> bytes:
    """Returns a request's body. It is made before the measurement, because a body of a million ids takes 0.2 s."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 24, **fields}
    return json.dumps(body).encode()


async def costly(client: httpx.AsyncClient, name: str, body: bytes) -> Case:
    case = Case(name)
    begun = case.begun = time.perf_counter()
    try:
        answer = await client.post("/chat/completions", content=body, headers={"content-type": "application/json"})
        case.status = answer.status_code
        case.code = "" if case.status == 200 else answer.json()["error"].get("code") or ""
    except httpx.HTTPError as error:
        case.code = type(error).__name__
    case.seconds = time.perf_counter() - begun
    return case


def longest(seen: Streams) -> float:
    return max((gap for gap, _ in seen.gaps), default=0.0)


def longest_gaps(seen: Streams, cases: list[Case]) -> list[str]:
    """Returns the five longest pauses, each with the cases that were in progress."""
    told = []
    for gap, at in sorted(seen.gaps, reverse=True)[:5]:
        beside = [case.name for case in cases if case.begun < at and case.begun + case.seconds > at - gap]
        told.append(f"- {gap:.3f} s beside {', '.join(beside) or 'none'}")
    return told


async def stream(client: httpx.AsyncClient, seen: Streams, number: int) -> None:
    """Streams one answer after another, until it is cancelled."""
    while True:
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": f"stream {number}"}],
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": True,
            "logit_bias": {},
        }
        async with client.stream("POST", "/chat/completions", json=body) as answer:
            seen.workers.update(answer.headers.get("x-triptych-plan", "").split())
            last = 0.0
            async for line in answer.aiter_lines():
                if '"error"' in line:
                    seen.broken.append(line[:200])
                if not line.startswith("data: {"):
                    continue
                now = time.perf_counter()
                if last:
                    seen.gaps.append((now - last, now))
                last = now
                seen.tokens += 1


async def measure(url: str, apart_s: float) -> tuple[list[Case], Streams, Streams]:
    """Returns (the cases, the streams alone, the streams beside the cases)."""
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=limits) as client:
        alone, beside = Streams(), Streams()
        bodies = {name: encoded(fields) for name, fields in CASES.items()}
        await costly(client, "a plain schema", bodies["a negative length"])
        for seen, run in ((alone, _wait), (beside, _send)):
            streams = [asyncio.create_task(stream(client, seen, n)) for n in range(STREAMS)]
            cases = await run(client, bodies, apart_s)
            for task in streams:
                if task.done() and task.exception():
                    seen.broken.append(repr(task.exception()))
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        return cases, alone, beside


async def _wait(client: httpx.AsyncClient, bodies: dict[str, bytes], apart_s: float) -> list[Case]:
    await asyncio.sleep(10)
    return []


async def _send(client: httpx.AsyncClient, bodies: dict[str, bytes], apart_s: float) -> list[Case]:
    tasks = []
    for name, body in bodies.items():
        tasks.append(asyncio.create_task(costly(client, name, body)))
        await asyncio.sleep(apart_s)
    cases = list(await asyncio.gather(*tasks))
    await asyncio.sleep(5)  # what they left behind would show now
    cases += [await costly(client, f"a plain answer, {number}", encoded({})) for number in (1, 2)]
    return cases


def report(cases: list[Case], alone: Streams, beside: Streams) -> str:
    rows = [f"| {case.name} | {case.status} | {case.code or '–'} | {case.seconds:.2f} |" for case in cases]
    return "\n".join(
        [
            "# Costly schemas, patterns and stop strings, one a second, on real vLLM",
            "",
            "Two vLLM workers with the demo model and a frontend on one machine of two cores; "
            f"{STREAMS} streams run at both workers (`python -m benchmarks.costly_schemas`).",
            "",
            "| streams | tokens | longest gap (s) | broken |",
            "|---|---|---|---|",
            *(
                f"| {name} | {seen.tokens} | {longest(seen):.3f} | {len(seen.broken)} |"
                for name, seen in (("alone", alone), ("beside the cases", beside))
            ),
            "",
            "Longest gaps:",
            "",
            *longest_gaps(beside, cases),
            "",
            "| case | status | code | answered after (s) |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def wrong(cases: list[Case], beside: Streams) -> list[str]:
    found = [f"{case.name}: {case.status} {case.code} after {case.seconds:.1f} s" for case in cases if not case.right]
    found += [f"{case.name}: {case.status}" for case in cases if case.name.startswith("a plain") and case.status != 200]
    if longest(beside) >= LONGEST_GAP_S:
        found.append(f"a stream paused for {longest(beside):.2f} s")
    if len(beside.workers) < 2:
        found.append(f"the streams ran at {beside.workers} only")
    return found + beside.broken[:5]


def serve(folder: Path) -> tuple[subprocess.Popen[str], str]:
    graph = folder / "graph.yaml"
    graph.write_text(json.dumps(GRAPH))
    words = [sys.executable, "-m", "triptych", "up", str(graph), "--run-dir", str(folder / "run")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Serving "):
            return process, line.split(" at ")[1].split()[0]
    raise SystemExit("the deployment did not start")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="a running deployment to ask, instead of starting one")
    parser.add_argument("--apart-s", type=float, default=APART_S, help="time between two cases")
    parser.add_argument("--cpu-group", type=Path, help="folder of an existing control group to run in")
    parser.add_argument("--output", type=Path, default=RESULT, help="file for the result")
    args = parser.parse_args()
    if args.cpu_group:
        (args.cpu_group / "cgroup.procs").write_text(str(os.getpid()))
    with tempfile.TemporaryDirectory() as folder:
        process, url = (None, args.url) if args.url else serve(Path(folder))
        try:
            cases, alone, beside = asyncio.run(measure(url, args.apart_s))
        finally:
            if process is not None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=30)
    args.output.write_text(report(cases, alone, beside))
    print(report(cases, alone, beside))
    faults = wrong(cases, beside)
    print("\n".join(faults) or "all right")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
