"""What a system is to the benchmark, and what those behind HTTP share."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.load import Request, run_load, run_load_beside
from benchmarks.measure import Leg, Record, Summary, summarise, summarise_beside
from benchmarks.procs import Child, cpu_seconds, resident_mib, tree
from benchmarks.workloads import Prompt, cached_prompts, http_request, texts_beside

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Setup:
    """The settings that every system gets."""

    model: Path
    work_dir: Path
    """The folder for logs and run directories."""
    peers_python: Path = ROOT / ".venv-peers" / "bin" / "python"


FRONTEND_CORE, OTHERS_CORE = 0, 1
"""The cores for long prompts: the frontend has the first to itself."""


def pinned(argv: list[str], core: int) -> list[str]:
    """Returns a command that runs on one core alone."""
    return ["taskset", "-c", str(core), *argv]


class System(Protocol):
    """One system under test.

    ``start`` returns once requests are answered, or raises StartError with the reason and leaves nothing
    behind. ``stop`` may be called twice, and without ``start``.
    """

    title: str
    freezable: bool
    """Whether it may be stopped by signal while others are measured (no leases that would run out)."""
    startup_s: dict[str, float]
    """For each part: the seconds from its start until it was ready."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def run(self, leg: Leg) -> Summary:
        """Warms up, then measures."""
        ...

    async def memory_mib(self) -> dict[str, float]:
        """Returns resident memory by part."""
        ...

    def pids(self) -> list[int]:
        """Returns all processes of the system; those of its load generator are left out."""
        ...


@dataclass
class HttpSystem:
    """A system of child processes behind an OpenAI-compatible URL. Subclasses fill in ``start``."""

    setup: Setup
    title: str = ""
    freezable: bool = False
    startup_s: dict[str, float] = field(default_factory=dict)
    url: str = ""
    model_name: str = ""
    children: dict[str, Child] = field(default_factory=dict)
    """The processes by part. Requests go to the first."""

    async def launch(self, part: str, argv: list[str], env: Mapping[str, str | None] | None = None) -> Child:
        name = f"{type(self).__name__}-{part}"
        child = await Child.start(name, argv, self.setup.work_dir, env=env, cwd=ROOT)
        self.children[part] = child
        return child

    async def serving(self, part: str) -> None:
        """Waits until a model is listed, and notes its name and the time that the part took."""
        child = self.children[part]
        listing = await child.wait_http(f"{self.url}/v1/models", START_TIMEOUT_S, contains='"id"')
        self.model_name = json.loads(listing)["data"][0]["id"]
        self.ready(part)

    def ready(self, part: str) -> None:
        self.startup_s[part] = time.perf_counter() - self.children[part].started_at

    async def stop(self) -> None:
        """Stops the processes, the last started first: earlier ones do not need later ones."""
        while self.children:
            _, child = self.children.popitem()
            await child.stop()

    def pids(self) -> list[int]:
        return tree(child.pid for child in self.children.values())

    def cpu(self) -> dict[str, float]:
        return {part: cpu_seconds(tree([child.pid])) for part, child in self.children.items()}

    async def memory_mib(self) -> dict[str, float]:
        return {part: resident_mib(tree([child.pid])) for part, child in self.children.items()}

    async def run(self, leg: Leg) -> Summary:
        if leg.warmup:
            await self._load(leg, warmup=True)
        requests = self._requests(leg, warmup=False)
        before, load_before = self.cpu(), time.process_time()
        beside: list[Record] = []
        if leg.beside:
            texts = self.requests_of(texts_beside(leg))
            records, beside, wall_s = await run_load_beside(
                self.url, requests, leg.concurrency, leg.limit_s, texts, leg.beside
            )
        else:
            records, wall_s = await run_load(self.url, requests, leg.concurrency, leg.limit_s)
        load_cpu_s = time.process_time() - load_before
        used = {part: after - before[part] for part, after in self.cpu().items()}
        if leg.beside:
            return summarise_beside(records, beside, wall_s, used, load_cpu_s)
        return summarise(records, wall_s, used, load_cpu_s)

    async def _load(self, leg: Leg, warmup: bool) -> None:
        await run_load(self.url, self._requests(leg, warmup), leg.concurrency, leg.limit_s)

    def _requests(self, leg: Leg, warmup: bool) -> list[Request]:
        return self.requests_of(cached_prompts(leg, warmup))

    def requests_of(self, prompts: Iterable[Prompt], model: str = "") -> list[Request]:
        """Returns requests to ``model``, or to the first listed model if it is empty."""
        host = self.url.removeprefix("http://")
        name = model or self.model_name
        return [Request(http_request(prompt, name, host), prompt.max_tokens) for prompt in prompts]
