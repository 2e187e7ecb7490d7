"""vLLM's own OpenAI server, started by module: as it comes, and with Triptych's executor setting."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.procs import StartError, free_port
from benchmarks.systems.base import HttpSystem
from benchmarks.systems.engine_settings import ENGINE_ENV, SINGLE_PROCESS_ENV, flags


@dataclass
class VllmServer(HttpSystem):
    """The server with its defaults: API server, engine core and worker in three processes."""

    title: str = "vLLM server"
    freezable: bool = True

    def env(self) -> Mapping[str, str | None]:
        return ENGINE_ENV

    async def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.setup.model)]
        argv += ["--host", "127.0.0.1", "--port", str(port), *flags()]
        # No line of log for every request, as none of the others writes one.
        argv += ["--disable-uvicorn-access-log"]
        try:
            await self.launch("server", argv, self.env())
            await self.serving("server")
        except (StartError, OSError):
            await self.stop()
            raise


@dataclass
class VllmServerSingleProcess(VllmServer):
    """The server with the worker in the engine's process, as in Triptych's engine on a CPU."""

    title: str = "vLLM server, single-process engine"

    def env(self) -> Mapping[str, str | None]:
        return SINGLE_PROCESS_ENV
