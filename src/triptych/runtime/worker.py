"""A worker's life: start the engine, serve, register; then withdraw, drain, close, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing

import msgspec

from triptych.config.serve import WorkerConfig
from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.errors import BadRequest
from triptych.contracts.request import GENERATE, GenerateRequest
from triptych.engines.base import Engine
from triptych.planes.discovery.base import Discovery
from triptych.planes.request.base import RequestServer

log = logging.getLogger("triptych.worker")

_DECODER = msgspec.msgpack.Decoder(GenerateRequest)
_ENCODER = msgspec.msgpack.Encoder()


class EngineFailed(Exception):
    """The engine died under a running worker; the process ends so that its supervisor starts another."""


class Worker:
    """One span of one model, served on the request plane and visible in discovery."""

    def __init__(self, config: WorkerConfig, engine: Engine, server: RequestServer, discovery: Discovery) -> None:
        self._config = config
        self._engine = engine
        self._server = server
        self._discovery = discovery

    async def run(self, stop: asyncio.Event, on_ready: Callable[[Instance], None]) -> None:
        """Serve until ``stop`` is set, then drain. Raises EngineFailed when the engine dies first."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._engine.stop)
            card = await self._engine.start()
            stack.push_async_callback(self._server.close)
            host, port = await self._server.start({GENERATE: self._generate})
            instance = self._instance(card, host, port)
            lease = await self._discovery.register(instance)
            stack.push_async_callback(lease.withdraw)
            on_ready(instance)
            cause = await _first(stop.wait(), self._engine.failed())
            await lease.withdraw()
            if isinstance(cause, str):
                raise EngineFailed(cause)
            log.info("draining, at most %.1f s", self._config.drain_timeout_s)
            await self._server.drain(self._config.drain_timeout_s)

    def _instance(self, card: ModelCard, host: str, port: int) -> Instance:
        component = self._config.name or self._config.span.value
        return Instance(
            id=f"{component}-{secrets.token_hex(4)}",
            component=component,
            span=self._config.span,
            engine=self._config.engine,
            model=card,
            host=host,
            port=port,
            pid=os.getpid(),
            started_unix_s=time.time(),
        )

    async def _generate(self, payload: bytes) -> AsyncGenerator[bytes, None]:
        try:
            request = _DECODER.decode(payload)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"the request does not fit this worker's version: {error}") from error
        async with aclosing(self._engine.generate(request)) as deltas:
            async for delta in deltas:
                yield _ENCODER.encode(delta)


async def _first(*waits: Awaitable[object]) -> object:
    """The result of the wait that ends first; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
