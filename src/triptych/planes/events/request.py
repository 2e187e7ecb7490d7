"""Carries events over the request plane alone: each frontend makes one call to each worker, answered by a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from triptych.contracts.card import Instance
from triptych.contracts.errors import TriptychError
from triptych.contracts.kv_events import EVENTS, KvBatch, Load, WorkerUpdate
from triptych.kv.log import KvLog
from triptych.planes.events.base import USUAL, EventPace
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.request.base import Handler, Payload, RequestClient, peer_of

_ENCODER = msgspec.msgpack.Encoder()
_UPDATE = msgspec.msgpack.Decoder(WorkerUpdate)


class RequestPublisher:
    """Answers each follower with a stream of its own, over the request plane."""

    def __init__(self, pace: EventPace = USUAL) -> None:
        self._pace = pace
        self._log = KvLog(list)
        self._load = LoadTracker()

    async def start(self, log: KvLog, load_tracker: LoadTracker) -> str:
        self._log, self._load = log, load_tracker
        return ""

    def endpoints(self) -> dict[str, Handler]:
        return {EVENTS: self._stream}

    async def _stream(self, payload: Payload) -> AsyncGenerator[bytes, None]:
        frontend_id = str(payload, "utf-8", "replace")
        async with aclosing(updates(self._log, self._load, frontend_id, self._pace)) as stream:
            async for update in stream:
                yield _ENCODER.encode(update)

    async def close(self) -> None:
        pass


async def updates(
    log: KvLog, load_tracker: LoadTracker, frontend_id: str, pace: EventPace = USUAL
) -> AsyncGenerator[WorkerUpdate, None]:
    """Yields a snapshot for the frontend ``frontend_id``, and then every change, until ``log`` is closed.

    Sends an empty update every ``heartbeat_s`` if there is nothing else.
    """
    async with aclosing(log.follow()) as batches:
        waiting = asyncio.ensure_future(anext(batches, None))
        sent: Load | None = None
        silent_s = 0.0
        try:
            while True:
                await asyncio.wait({waiting}, timeout=pace.load_period_s)
                batch: KvBatch | None = None
                if waiting.done():
                    if (batch := waiting.result()) is None:
                        return
                    waiting = asyncio.ensure_future(anext(batches, None))
                now = load_tracker.others(frontend_id)
                load = now if now != sent else None
                silent_s = 0.0 if batch or load else silent_s + pace.load_period_s
                if batch or load or silent_s >= pace.heartbeat_s:
                    sent, silent_s = now, 0.0
                    yield WorkerUpdate(batch, load)
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})


class RequestSource:
    """Follows workers by their endpoint ``events``."""

    def __init__(self, client: RequestClient, pace: EventPace = USUAL) -> None:
        self._client = client
        self._pace = pace

    async def follow(self, instance: Instance, frontend_id: str) -> AsyncGenerator[WorkerUpdate, None]:
        call = self._client.call(peer_of(instance), EVENTS, frontend_id.encode(), silence_s=self._pace.silence_s)
        expected = 0
        async with call as batches:
            async for payloads in batches:
                for payload in payloads:
                    try:
                        update = _UPDATE.decode(payload)
                    except msgspec.MsgspecError as error:
                        raise TriptychError(f"its events are of another version: {error}") from error
                    if update.kv is not None:
                        if update.kv.sequence != expected:
                            raise TriptychError(f"message {update.kv.sequence} came for {expected}")
                        expected += 1
                    yield update

    async def close(self) -> None:
        pass
