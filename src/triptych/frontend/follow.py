"""Follows every live worker's news, so that routing knows what each holds and has to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator

import msgspec

from triptych.contracts.card import Instance
from triptych.contracts.errors import NotFound, TriptychError
from triptych.contracts.kv_events import EVENTS, News
from triptych.planes.request.base import RequestClient
from triptych.router.routing import Routing

log = logging.getLogger("triptych.follow")

SILENCE_S = 5.0
RETRY_S = 0.5

_NEWS = msgspec.msgpack.Decoder(News)


class Follower:
    """One subscription to each worker, begun again with a snapshot whenever it breaks. For one event loop."""

    def __init__(self, client: RequestClient, routing: Routing) -> None:
        self._client = client
        self._routing = routing
        self._following: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def update(self, instances: Iterable[Instance]) -> None:
        """Those that are alive now."""
        alive = {one.id: one for one in instances}
        for gone in [one for one in self._following if one not in alive]:
            self._leaving.add(task := self._following.pop(gone))
            task.add_done_callback(self._leaving.discard)
            task.cancel()
        for name, one in alive.items():
            if name not in self._following and one.span.value != "e":
                self._following[name] = asyncio.create_task(self._follow(one), name=f"follow {one.name}")

    async def close(self) -> None:
        """May be called twice."""
        self.update(())
        if self._leaving:
            await asyncio.wait(set(self._leaving))

    async def _follow(self, instance: Instance) -> None:
        try:
            while True:
                try:
                    await self._listen(instance)
                except NotFound:
                    return  # a worker of another version: it is guessed at
                except (TriptychError, msgspec.MsgspecError, ValueError) as error:
                    log.info("%s tells nothing for now: %s", instance.name, error)
                await _swept(self._routing.forget(instance.id))
                await asyncio.sleep(RETRY_S)
        finally:
            for _ in self._routing.forget(instance.id):
                pass

    async def _listen(self, instance: Instance) -> None:
        call = self._client.call(
            instance.host, instance.port, EVENTS, self._routing.origin.encode(), silence_s=SILENCE_S
        )
        expected = 0
        async with call as batches:
            async for payloads in batches:
                for payload in payloads:
                    told = _NEWS.decode(payload)
                    if told.load is not None:
                        self._routing.report(instance.id, told.load)
                    if told.kv is not None:
                        if told.kv.sequence != expected:
                            raise ValueError(f"message {told.kv.sequence} came for {expected}")
                        expected += 1
                        await _swept(self._routing.apply(instance.id, told.kv))


async def _swept(steps: Iterator[None]) -> None:
    for _ in steps:
        await asyncio.sleep(0)
