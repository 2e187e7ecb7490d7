"""Workers and frontends as the event plane sees them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from support.carriers import Carrier
from support.instances import instance
from support.loops import until
from triptych.contracts.card import Instance
from triptych.contracts.kv_events import KvChange, Level, Load, packed, unpacked
from triptych.kv.log import KvLog
from triptych.planes.events.base import Publisher
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.request.tcp_client import TcpRequestClient
from triptych.planes.request.tcp_server import TcpRequestServer


class Speaker:
    """A worker that holds blocks, and says so."""

    def __init__(self, publisher: Publisher, max_behind: int = 4096) -> None:
        self.held: set[int] = set()
        self.log = KvLog(lambda: [KvChange(Level.DEVICE, True, packed(sorted(self.held)))], max_behind)
        self.account = LoadTracker()
        self.publisher: Any = publisher
        self.instance: Instance = None  # type: ignore[assignment]
        self.snapshots = 0

    def store(self, *hashes: int) -> None:
        self.held.update(hashes)
        self.log.publish([KvChange(Level.DEVICE, True, packed(list(hashes)))])

    def remove(self, *hashes: int) -> None:
        self.held.difference_update(hashes)
        self.log.publish([KvChange(Level.DEVICE, False, packed(list(hashes)))])

    def clear(self) -> None:
        self.held.clear()
        self.log.reset()

    async def live(self, chance: random.Random, turns: int) -> None:
        """Some life: blocks come and go, over so many turns of the event loop."""
        for _ in range(turns):
            self.store(*(chance.getrandbits(16) for _ in range(8)))
            if self.held:
                self.remove(*chance.sample(sorted(self.held), min(6, len(self.held))))
            await asyncio.sleep(0)

    @asynccontextmanager
    async def speaking(self, name: str = "w", *, token: str | None = None) -> AsyncIterator[Speaker]:
        server = TcpRequestServer("127.0.0.1", 0, max_in_flight=100, token=token)
        try:
            events = await self.publisher.start(self.log, self.account)
            mark = f"{name}.{id(self)}"
            host, port = await server.start({}, self.publisher.endpoints(), id=mark)
            self.instance = instance(mark, name=name, host=host, port=port, events=events)
            yield self
        finally:
            self.log.close()
            await server.close()
            await self.publisher.close()


class Listener:
    """A frontend that follows one worker, at its own pace."""

    def __init__(self, frontend_id: str) -> None:
        self.frontend_id = frontend_id
        self.held: set[int] = set()
        self.load: Load | None = None
        self.snapshots = 0
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.error: Exception | None = None

    async def follow(self, source: Any, of: Instance) -> None:
        try:
            async with aclosing(source.follow(of, self.frontend_id)) as news:
                async for told in news:
                    self._apply(told)
                    await self.may_read.wait()
        except Exception as error:
            self.error = error

    def _apply(self, told: Any) -> None:
        if told.load is not None:
            self.load = told.load
        if told.kv is None:
            return
        if told.kv.reset:
            self.held.clear()
            self.snapshots += 1
        for change in told.kv.changes:
            (self.held.update if change.stored else self.held.difference_update)(unpacked(change.hashes))

    async def agrees(self, speaker: Speaker) -> None:
        await until(
            lambda: self.snapshots and self.held == speaker.held, f"{self.frontend_id} knows what the worker holds"
        )


@asynccontextmanager
async def listening(
    carrier: Carrier, of: Instance, frontend_id: str = "me", *, token: str | None = None
) -> AsyncIterator[Listener]:
    listener, client = Listener(frontend_id), TcpRequestClient(token)
    source = carrier.source(client, token)
    task = asyncio.create_task(listener.follow(source, of), name=f"{frontend_id} listens")
    try:
        yield listener
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await source.close()
        await client.close()


@asynccontextmanager
async def heard(carrier: Carrier) -> AsyncIterator[tuple[Speaker, Listener]]:
    """A worker that tells, and one who listens to it."""
    async with Speaker(carrier.publisher()).speaking() as speaker, listening(carrier, speaker.instance) as listener:
        yield speaker, listener
