"""Events as a stream of the request plane: one call of each frontend to each worker, and nothing beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from triptych.contracts.card import Instance
from triptych.contracts.errors import TriptychError
from triptych.contracts.kv_events import EVENTS, KvBatch, Load, News
from triptych.kv.log import KvLog
from triptych.planes.events.base import HEARTBEAT_S, LOAD_PERIOD_S, SILENCE_S
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.request.base import Handler, Payload, RequestClient, peer_of

_ENCODER = msgspec.msgpack.Encoder()
_NEWS = msgspec.msgpack.Decoder(News)


class RequestPublisher:
    """Answers each follower with a stream of its own."""

    def __init__(self) -> None:
        self._log = KvLog(list)
        self._account = LoadTracker()

    async def start(self, log: KvLog, account: LoadTracker) -> str:
        self._log, self._account = log, account
        return ""

    def endpoints(self) -> dict[str, Handler]:
        return {EVENTS: self._stream}

    async def _stream(self, payload: Payload) -> AsyncGenerator[bytes, None]:
        async with aclosing(news(self._log, self._account, str(payload, "utf-8", "replace"))) as told:
            async for one in told:
                yield _ENCODER.encode(one)

    async def close(self) -> None:
        pass


async def news(log: KvLog, account: LoadTracker, origin: str) -> AsyncGenerator[News, None]:
    """For the frontend ``origin``: all that there is, and then what changes, until ``log`` is closed. Never silent for
    long."""
    async with aclosing(log.follow()) as batches:
        waiting = asyncio.ensure_future(anext(batches, None))
        said: Load | None = None
        silent_s = 0.0
        try:
            while True:
                await asyncio.wait({waiting}, timeout=LOAD_PERIOD_S)
                batch: KvBatch | None = None
                if waiting.done():
                    if (batch := waiting.result()) is None:
                        return
                    waiting = asyncio.ensure_future(anext(batches, None))
                now = account.others(origin)
                load = now if now != said else None
                silent_s = 0.0 if batch or load else silent_s + LOAD_PERIOD_S
                if batch or load or silent_s >= HEARTBEAT_S:
                    said, silent_s = now, 0.0
                    yield News(batch, load)
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})


class RequestSource:
    """Calls workers' endpoint ``events``."""

    def __init__(self, client: RequestClient) -> None:
        self._client = client

    async def follow(self, instance: Instance, origin: str) -> AsyncGenerator[News, None]:
        call = self._client.call(peer_of(instance), EVENTS, origin.encode(), silence_s=SILENCE_S)
        expected = 0
        async with call as batches:
            async for payloads in batches:
                for payload in payloads:
                    try:
                        told = _NEWS.decode(payload)
                    except msgspec.MsgspecError as error:
                        raise TriptychError(f"its events are of another version: {error}") from error
                    if told.kv is not None:
                        if told.kv.sequence != expected:
                            raise TriptychError(f"message {told.kv.sequence} came for {expected}")
                        expected += 1
                    yield told

    async def close(self) -> None:
        pass
