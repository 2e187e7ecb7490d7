"""Triptych: each of its modes on vLLM, and its frontend alone on the mock engine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.procs import StartError, free_port
from benchmarks.systems.base import FRONTEND_CORE, OTHERS_CORE, ROOT, START_TIMEOUT_S, HttpSystem, pinned
from benchmarks.systems.engine_settings import SINGLE_PROCESS_ENV, flags

_READY = "triptych: ready "
_COMMAND = [sys.executable, "-m", "triptych"]


@dataclass
class Triptych(HttpSystem):
    """``triptych up`` on an example graph, with the engine flags that all systems here share."""

    title: str = "Triptych EPD"
    mode: str = "epd"
    """The name of the graph in ``examples/``."""
    threads: int = 1
    """The number of threads of each engine."""
    worker_settings: Mapping[str, object] = field(default_factory=dict)
    """Settings that are added to every worker of the graph."""

    async def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        name = f"triptych-{self.mode}-{self.threads}"
        argv = [*_COMMAND, "up", str(self._graph(name)), "--port", str(port), "--model", str(self.setup.model)]
        try:
            run_dir = str(self.setup.work_dir / name)
            env = SINGLE_PROCESS_ENV | {"TRIPTYCH_RUN_DIR": run_dir, "OMP_NUM_THREADS": str(self.threads)}
            deployment = await self.launch(name, argv, env)
            await deployment.wait_line("Serving ", START_TIMEOUT_S)  # with all of its workers
            await self.serving(name)
        except (StartError, OSError):
            await self.stop()
            raise

    def _graph(self, name: str) -> Path:
        """Writes a copy of the graph in which every vLLM worker also has the shared engine flags."""
        graph = yaml.safe_load((ROOT / "examples" / f"{self.mode}.yaml").read_text())
        for worker in graph["workers"]:
            worker.update(self.worker_settings)
            if worker.get("engine", "vllm") == "vllm":
                worker["args"] = [*flags(), *worker.get("args", ())]
        copy = self.setup.work_dir / f"{name}.yaml"
        copy.write_text(yaml.safe_dump(graph, sort_keys=False))
        return copy


@dataclass
class TriptychFrontend(HttpSystem):
    """Frontend and mock worker as two processes."""

    title: str = "Triptych frontend"

    async def start(self) -> None:
        run_dir = str(self.setup.work_dir / "triptych-frontend")
        try:
            frontend = await self.launch("frontend", [*_COMMAND, "frontend", "--port", "0", "--run-dir", run_dir])
            line = await frontend.wait_line(f"{_READY}frontend ", START_TIMEOUT_S)
            self.ready("frontend")
            self.url = line.removeprefix(f"{_READY}frontend ").strip()
            argv = [*_COMMAND, "worker", "--engine", "mock", "--model", str(self.setup.model)]
            await self.launch("worker", [*argv, "--run-dir", run_dir])
            await self.serving("worker")
        except (StartError, OSError):
            await self.stop()
            raise


@dataclass
class TriptychLong(HttpSystem):
    """The frontend alone on a core, a mock worker that answers at once, and one of 20 tokens a second."""

    title: str = "Triptych frontend"
    paced_model: str = "paced"
    """The name of the model of the slower worker."""

    async def start(self) -> None:
        run_dir = str(self.setup.work_dir / "triptych-long")
        try:
            argv = [*_COMMAND, "frontend", "--port", "0", "--run-dir", run_dir]
            frontend = await self.launch("frontend", pinned(argv, FRONTEND_CORE))
            line = await frontend.wait_line(f"{_READY}frontend ", START_TIMEOUT_S)
            self.ready("frontend")
            self.url = line.removeprefix(f"{_READY}frontend ").strip()
            argv = [*_COMMAND, "worker", "--engine", "mock", "--model", str(self.setup.model), "--run-dir", run_dir]
            length = ["--", "--max-model-len", "131072"]
            await self.launch("worker", pinned([*argv, *length], OTHERS_CORE))
            await self.serving("worker")
            argv += ["--served-model-name", self.paced_model, *length, "--itl-ms", "50"]
            paced = await self.launch("paced", pinned(argv, OTHERS_CORE))
            await paced.wait_http(f"{self.url}/v1/models", START_TIMEOUT_S, contains=f'"{self.paced_model}"')
        except (StartError, OSError):
            await self.stop()
            raise
