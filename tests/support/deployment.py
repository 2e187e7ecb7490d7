"""A whole deployment inside the test's own event loop: the real frontend and mock workers over real sockets."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

from support.carriers import Carrier
from support.loops import until
from triptych.cli import serving as frontend_server
from triptych.config.media import MediaLimits
from triptych.config.router import RouterConfig
from triptych.config.serve import FrontendConfig, WorkerConfig
from triptych.config.transfer import TransferConfig
from triptych.contracts.card import Instance
from triptych.contracts.spans import Span
from triptych.demo import MODEL_DIR
from triptych.engines.base import EngineOptions
from triptych.engines.mock.engine import MockEngine
from triptych.engines.registry import engine_factory
from triptych.planes import run_dir
from triptych.planes.discovery.local import LocalDiscovery, LocalPace
from triptych.planes.request.limits import WireLimits
from triptych.planes.request.tcp_client import TcpRequestClient
from triptych.planes.request.tcp_server import TcpRequestServer
from triptych.runtime.worker import Worker
from triptych.stages.dispatch import Dispatcher
from triptych.transfer.base import Transfer
from triptych.transfer.inproc import InprocTransfer

FAST = LocalPace(scan_s=0.02)
JSON = {"content-type": "application/json"}
"""What clients say of their bodies, also of those that tests write by hand."""


class _Refused(set[Any]):
    """Connections that were being accepted when their server vanished."""

    def add(self, connection: Any) -> None:
        connection.abort()


@dataclass(eq=False)
class MockWorker:
    """One worker with the mock engine, in a task of this process."""

    engine: MockEngine
    server: TcpRequestServer
    instance: Instance
    stop: asyncio.Event
    task: asyncio.Task[None]
    worker: Worker

    @property
    def counts(self) -> dict[str, float]:
        """Its metrics, without the common ``triptych_``."""
        return {one.name.removeprefix("triptych_"): one.value for one in self.worker.endpoints.metrics()}

    @property
    def running(self) -> int:
        """Requests that the engine holds."""
        return self.engine.stats().running

    async def idle(self) -> None:
        await until(lambda: self.running == 0, "the engine holds no request any more")

    async def busy(self, count: int = 1) -> None:
        await until(lambda: self.running >= count, f"the engine holds {count} request(s)")

    async def made(self, count: int) -> None:
        await until(lambda: self.engine.stats().generated_tokens >= count, f"the engine made {count} token(s)")

    def break_connections(self) -> None:
        """What frontends see of a crash: every connection gone at once, nothing said."""
        for connection in list(self.server.connections):
            connection.abort()

    async def kill(self) -> None:
        """No drain, no goodbye: the end of a process as its peers see it."""
        self.break_connections()
        self.task.cancel()
        await asyncio.wait([self.task])

    def vanish(self) -> None:
        """As ``kill -9``, as long as discovery does not know of it: its heartbeat goes on."""
        for server in self.server._servers:
            server.close()
        self.break_connections()
        self.server.connections = _Refused()

    def freeze(self) -> None:
        """As a blocked event loop: what was sent before arrives, and its connections say nothing any more."""
        for connection in list(self.server.connections):
            connection._transport.pause_reading()
            connection._flush()
            connection.send = lambda *frame: None  # type: ignore[method-assign]

    async def drain(self) -> None:
        """As SIGTERM does; returns once the worker has ended."""
        self.stop.set()
        await asyncio.wait([self.task])


@dataclass
class Deployed:
    """Handles of a running deployment. ``http`` is a client of its frontend."""

    run_dir: Path
    url: str = ""
    workers: list[MockWorker] = field(default_factory=list)
    http: httpx.AsyncClient = None  # type: ignore[assignment]
    dispatcher: Dispatcher = None  # type: ignore[assignment]
    drain: asyncio.Event = field(default_factory=asyncio.Event)
    token: str = ""
    """What workers in other processes of its run directory want to hear."""

    @property
    def worker(self) -> MockWorker:
        return self.workers[0]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def add_worker(self, **settings: Any) -> MockWorker:
        worker = await start_worker(self.run_dir, **{"token": self.token, **settings})
        self.workers.append(worker)
        return worker

    async def chat(self, content: Any = "hello", **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=chat_body(content, **fields))

    async def complete(self, prompt: Any = "hello", **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"model": "demo", "prompt": prompt, **fields})

    async def ready(self, is_ready: bool = True) -> None:
        wanted = 200 if is_ready else 503
        deadline = asyncio.get_running_loop().time() + 10
        while (status := (await self.http.get("/ready")).status_code) != wanted:
            assert asyncio.get_running_loop().time() < deadline, f"/ready stays at {status}, wanted {wanted}"
            await asyncio.sleep(0.01)


def chat_body(content: Any = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": content}], "temperature": 0, **fields}


async def start_worker(
    run_dir: Path,
    *,
    model: Path | str = MODEL_DIR,
    name: str = "demo",
    engine: str = "mock",
    engine_args: tuple[str, ...] = (),
    limits: MediaLimits | None = None,
    namespace: str = "default",
    token: str | None = None,
    transfer: Transfer | None = None,
    carrier: Carrier | None = None,
    wire: WireLimits | None = None,
    pace: LocalPace = FAST,
    **config: Any,
) -> MockWorker:
    """Start a worker and wait until it is registered."""
    settings = WorkerConfig(model=str(model), engine=engine, **config)
    made: Any = engine_factory(engine)(
        EngineOptions(
            model_path=str(model),
            model_name=name,
            span=settings.span,
            media=limits or MediaLimits(),
            args=engine_args,
        )
    )
    wire = wire or WireLimits()
    server = TcpRequestServer(
        settings.host, settings.port, max_in_flight=settings.max_in_flight, token=token, limits=wire
    )
    publisher = (carrier or Carrier()).publisher(token, settings.host)
    transfer = transfer or InprocTransfer(TransferConfig())
    worker = Worker(settings, made, server, LocalDiscovery(run_dir, namespace, pace=pace), transfer, publisher)
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(worker.run(stop, ready.set_result), name=f"worker of {name}")
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        task.result()  # raises why it did not start
    return MockWorker(made, server, ready.result(), stop, task, worker)


@asynccontextmanager
async def deployment(
    *,
    workers: int = 1,
    spans: Sequence[str] = (),
    frontend: dict[str, Any] | None = None,
    limits: MediaLimits | None = None,
    token: str | None = None,
    carrier: Carrier | None = None,
    wire: WireLimits | None = None,
    pace: LocalPace = FAST,
    **worker: Any,
) -> AsyncIterator[Deployed]:
    """Mock workers and a frontend that knows them; ``worker`` holds settings of ``start_worker`` for all of them.

    There is one worker for each of ``spans``, named ``e-0``, ``pd-1`` ... by its place, or ``workers`` in ``epd``.
    """
    with tempfile.TemporaryDirectory(prefix="triptych-test-") as folder:
        deployed = Deployed(Path(folder))
        token = deployed.token = token or run_dir.token(deployed.run_dir)
        try:
            for place, span in enumerate(spans or ["epd"] * workers):
                named = {"span": Span(span), "instance_name": f"{span}-{place}"} if spans else {}
                await deployed.add_worker(
                    limits=limits, token=token, carrier=carrier, wire=wire, pace=pace, **named, **worker
                )
            client = TcpRequestClient(token, limits=wire or WireLimits())
            discovery = LocalDiscovery(deployed.run_dir, "default", pace=pace)
            async with _frontend(
                deployed, frontend or {}, limits or MediaLimits(), client, discovery, (carrier or Carrier(), token)
            ):
                yield deployed
        finally:
            for one in deployed.workers:
                one.task.cancel()
            await asyncio.gather(*(one.task for one in deployed.workers), return_exceptions=True)


@asynccontextmanager
async def _frontend(
    deployed: Deployed,
    settings: dict[str, Any],
    limits: MediaLimits,
    client: TcpRequestClient,
    discovery: LocalDiscovery,
    carried: tuple[Carrier, str | None],
) -> AsyncIterator[None]:
    routes = RouterConfig(**{name: settings[name] for name in settings if name.startswith("router_")})
    settings = {name: value for name, value in settings.items() if not name.startswith("router_")}
    config = FrontendConfig(
        port=0, **{"enable_multimodal": True, "drain_timeout_s": 2.0, "resume_timeout_s": 0.3, **settings}
    )
    carrier, token = carried
    events = carrier.source(client, token)

    def dispatcher(*args: Any) -> Dispatcher:
        deployed.dispatcher = Dispatcher(*args)
        return deployed.dispatcher

    with patch.object(frontend_server, "Dispatcher", dispatcher):
        async with (
            frontend_server.serving(config, limits, routes, discovery, client, events) as deployed.url,
            http_client(deployed.url) as deployed.http,
        ):
            yield


@asynccontextmanager
async def http_client(url: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client without TLS (loading certificates takes longer than most tests) and without proxies."""
    async with httpx.AsyncClient(
        base_url=url, timeout=30, trust_env=False, verify=False, limits=httpx.Limits(), headers=JSON, **settings
    ) as client:
        yield client
