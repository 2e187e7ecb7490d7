"""NVIDIA Dynamo 1.6: aggregated on vLLM, and its frontend alone on its mocker. Runs inside an agent.

Its event sockets bind 0.0.0.0 whatever is configured, so the agent runs in a network namespace that has only
loopback. File discovery, TCP request plane, no broker: the least that it can be run with.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.procs import StartError, free_port
from benchmarks.systems.base import FRONTEND_CORE, START_TIMEOUT_S, HttpSystem, pinned
from benchmarks.systems.engine_settings import SINGLE_PROCESS_ENV, flags

_PLANES = ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]


@dataclass
class _Dynamo(HttpSystem):
    """A frontend and one worker, which subclasses choose."""

    def worker(self) -> list[str]:
        raise NotImplementedError

    def frontend(self, argv: list[str]) -> list[str]:
        return argv

    async def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        store = self.setup.work_dir / type(self).__name__
        store.mkdir(exist_ok=True)
        env = SINGLE_PROCESS_ENV | {"DYN_FILE_KV": str(store), "DYN_HTTP_HOST": "127.0.0.1"}
        python = [str(self.setup.peers_python), "-m"]
        frontend = ["dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port), *_PLANES]
        try:
            child = await self.launch("frontend", self.frontend(python + frontend), env)
            await child.wait_http(f"{self.url}/v1/models", START_TIMEOUT_S)
            self.ready("frontend")
            await self.launch("worker", [*python, *self.worker(), *_PLANES], env)
            await self.serving("worker")
        except (StartError, OSError):
            await self.stop()
            raise


@dataclass
class DynamoAggregated(_Dynamo):
    """One vLLM worker that encodes, prefills and decodes."""

    title: str = "Dynamo aggregated"

    def worker(self) -> list[str]:
        return ["dynamo.vllm", "--model", str(self.setup.model), "--enable-multimodal", *flags()]


@dataclass
class DynamoFrontend(_Dynamo):
    """The frontend alone with a mocker. The mocker answers at once with a large speed-up, but not with a ratio of 0."""

    title: str = "Dynamo frontend"

    def worker(self) -> list[str]:
        limits = ["--speedup-ratio", "1000000", "--max-num-seqs", "256", "--block-size", "16"]
        return ["dynamo.mocker", "--model-path", str(self.setup.model), "--model-name", "bench", *limits]


@dataclass
class DynamoLong(_Dynamo):
    """The frontend alone on a core, with a mocker that has room for the prompts."""

    title: str = "Dynamo frontend"

    def frontend(self, argv: list[str]) -> list[str]:
        return pinned(argv, FRONTEND_CORE)

    def worker(self) -> list[str]:
        limits = ["--speedup-ratio", "1000000", "--max-num-seqs", "256", "--block-size", "16"]
        limits += ["--num-gpu-blocks-override", "400000", "--max-num-batched-tokens", "1000000"]
        return ["dynamo.mocker", "--model-path", str(self.setup.model), "--model-name", "bench", *limits]


@dataclass
class DynamoLongFast(DynamoLong):
    """The same frontend with Dynamo's fast tokenizer."""

    title: str = "Dynamo frontend, fastokens"

    def frontend(self, argv: list[str]) -> list[str]:
        return super().frontend([*argv, "--tokenizer", "fastokens", "--no-tokenizer-fallback"])
