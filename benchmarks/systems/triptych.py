"""Triptych: aggregated (EPD) on vLLM, and its frontend alone on the mock engine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.procs import StartError, free_port
from benchmarks.systems.base import START_TIMEOUT_S, HttpSystem
from benchmarks.systems.engine_settings import SINGLE_PROCESS_ENV, flags

_READY = "triptych: ready "
_COMMAND = [sys.executable, "-m", "triptych"]


@dataclass
class TriptychEpd(HttpSystem):
    """``triptych up`` on the example graph, with the engine flags that all systems here share."""

    title: str = "Triptych EPD"

    async def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        run_dir = self.setup.work_dir / "triptych-epd"
        argv = [*_COMMAND, "up", str(self._graph()), "--port", str(port), "--model", str(self.setup.model)]
        try:
            env = SINGLE_PROCESS_ENV | {"TRIPTYCH_RUN_DIR": str(run_dir)}
            await self.launch("deployment", argv, env)
            await self.serving("deployment")
        except (StartError, OSError):
            await self.stop()
            raise

    def _graph(self) -> Path:
        """A copy of the graph in which every vLLM worker has the shared engine flags."""
        graph = yaml.safe_load(self.setup.graph.read_text())
        for worker in graph["workers"]:
            if worker.get("engine", "vllm") == "vllm":
                worker["args"] = flags()
        copy = self.setup.work_dir / "epd.yaml"
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
