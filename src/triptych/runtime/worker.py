"""Runs a worker: starts the engine, serves and registers; then withdraws, drains, closes and stops."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from triptych.cache.embedding import EmbeddingCache
from triptych.config.serve import WorkerConfig
from triptych.contracts.card import Instance, ModelCard
from triptych.engines.base import Engine
from triptych.models.files import digest_of_files
from triptych.models.weights import weights_in
from triptych.observability import phases
from triptych.observability.lag import LoopLag
from triptych.planes.discovery.base import Discovery
from triptych.planes.events.base import Publisher
from triptych.planes.request.base import RequestServer
from triptych.runtime.endpoints import Endpoints
from triptych.transfer.base import Transfer

log = logging.getLogger("triptych.worker")


class EngineFailed(Exception):
    """The engine of a running worker died. The process ends, so that its supervisor starts another."""


class Worker:
    """One span of one model, served on the request plane and registered in discovery."""

    def __init__(
        self,
        config: WorkerConfig,
        engine: Engine,
        server: RequestServer,
        discovery: Discovery,
        transfer: Transfer,
        publisher: Publisher,
    ) -> None:
        self._config = config
        self._engine = engine
        self._server = server
        self._discovery = discovery
        self._transfer = transfer
        self._publisher = publisher

    async def run(
        self,
        stop: asyncio.Event,
        on_ready: Callable[[Instance], None],
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Serves until ``stop`` is set, and then drains. Raises EngineFailed when the engine dies first.

        ``on_start`` is called when the engine runs and the worker cannot be called yet, ``on_ready`` when it can.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._transfer.close)
            await self._transfer.start()
            stack.push_async_callback(self._engine.stop)
            card = await _with_digest(await self._engine.start(self._transfer))
            on_start()
            cache = self.cache = EmbeddingCache(self._config.embedding_cache_bytes)
            self._transfer.on_pressure(cache.reclaim)
            stack.push_async_callback(cache.close)
            lag = stack.enter_context(LoopLag().watching())
            self.endpoints = Endpoints(self._engine, card, self._transfer, cache, lag)
            stack.push_async_callback(self._publisher.close)
            events = await self._publisher.start(self.endpoints.kv_log, self.endpoints.load_tracker)
            stack.push_async_callback(self._server.close)
            standing = {**self.endpoints.standing(), **self._publisher.endpoints()}
            name, id = self._called()
            host, port = await self._server.start(self.endpoints.handlers(self._config.span), standing, id=id)
            instance = self._instance(card, name, id, host, port, events)
            phases.enter("naming the model's weights")
            weights = await asyncio.to_thread(weights_in, Path(card.path))
            instance = msgspec.structs.replace(instance, weights=weights)
            phases.enter("registering")
            lease = await self._discovery.register(instance)
            stack.push_async_callback(lease.withdraw)
            on_ready(instance)
            cause = await _first(stop.wait(), self._engine.failed())
            await lease.withdraw()
            if isinstance(cause, str):
                raise EngineFailed(cause)
            log.info("draining, at most %.1f s", self._config.drain_timeout_s)
            await self._server.drain(self._config.drain_timeout_s)

    @property
    def _component(self) -> str:
        return self._config.name or self._config.span.value

    def _called(self) -> tuple[str, str]:
        """Returns the worker's name and its id."""
        birth = secrets.token_hex(4)
        if name := self._config.instance_name:
            return name, f"{name}.{birth}"
        return (name := f"{self._component}-{birth}"), name

    def _instance(self, card: ModelCard, name: str, id: str, host: str, port: int, events: str) -> Instance:
        return Instance(
            id=id,
            name=name,
            component=self._component,
            span=self._config.span,
            capable_span=self._engine.capable_span if self._config.fallback else self._config.span,
            engine=self._config.engine,
            model=card,
            host=host,
            port=port,
            pid=os.getpid(),
            started_unix_s=time.time(),
            keeps_media=self._config.embedding_cache_bytes > 0,
            reports_kv=self.endpoints.reports_kv,
            max_in_flight=self._config.max_in_flight,
            tls=self._server.speaks_tls,
            events=events,
            kv_link=self._engine.kv_link,
            abilities=self.endpoints.abilities.names(),
        )


async def _with_digest(card: ModelCard) -> ModelCard:
    """Returns ``card`` with the digest of the files that a frontend needs of the checkpoint."""
    return msgspec.structs.replace(card, files_digest=await asyncio.to_thread(digest_of_files, Path(card.path)))


async def _first(*waits: Awaitable[object]) -> object:
    """Returns the result of the wait that ends first. The others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
