"""Publishes a worker's updates. Each is made once for all followers and numbered; a snapshot has the last number."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from triptych.aio.tasks import TaskSet
from triptych.contracts.kv_events import SNAPSHOT, KvChange, Load, NumberedUpdate, Snapshot
from triptych.kv.log import KvLog
from triptych.planes.events.base import USUAL, EventPace, EventSender
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.events.request import RequestPublisher
from triptych.planes.request.base import Handler, Payload

MESSAGE_BYTES = 256 << 10
"""The limit on bytes of a message. A larger one is not sent: its number is missing, so followers ask for a snapshot."""

_ENCODER = msgspec.msgpack.Encoder()


class PubSubPublisher:
    """Publishes by an ``EventSender``. Answers followers that do not listen there as ``RequestPublisher`` does.

    All changes of one turn of the event loop make one message. A snapshot and its number belong to the same moment.
    """

    def __init__(self, sender: EventSender, pace: EventPace = USUAL) -> None:
        self._pace = pace
        self.birth = secrets.token_hex(8)
        self._sender = sender
        self._streams = RequestPublisher(pace)
        self._log = KvLog(list)
        self._load = LoadTracker()
        self._stop_listening: Callable[[], None] = lambda: None
        self._number = 0
        self._waiting: list[KvChange] = []
        self._due = False
        self._published_loads: dict[str, Load] = {}
        self._published_at = 0.0
        self._tasks = TaskSet()

    async def start(self, log: KvLog, load_tracker: LoadTracker) -> str:
        self._log, self._load = log, load_tracker
        await self._streams.start(log, load_tracker)
        address = await self._sender.open(self.birth, self._schedule)
        self._stop_listening = log.listen(self._take)
        self._tasks.spawn(self._publish_loads(), "publish loads")
        return address

    def endpoints(self) -> dict[str, Handler]:
        return {**self._streams.endpoints(), SNAPSHOT: self._snapshot}

    async def close(self) -> None:
        self._stop_listening()
        self._stop_listening = lambda: None
        await self._tasks.close()
        await self._sender.close()

    def _take(self, changes: Sequence[KvChange] | None) -> None:
        if changes is None:
            self._waiting.clear()
            self._number += 1  # as if a message had been lost
        else:
            self._waiting += changes
        self._schedule()

    def _schedule(self) -> None:
        """Publishes at the end of this turn of the event loop: the waiting changes, or the load."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if not self._due:
            return
        self._due = False
        changes, self._waiting = self._waiting, []
        self._publish(changes)

    def _publish(self, changes: list[KvChange]) -> None:
        loads = None
        if not changes:
            loads = self._published_loads = self._load.loads()
        self._number += 1
        message = _ENCODER.encode(NumberedUpdate(self.birth, self._number, changes, loads))
        self._published_at = asyncio.get_running_loop().time()
        if len(message) <= MESSAGE_BYTES:
            self._sender.send(message)
        elif changes:
            self._publish([])  # followers notice the missing number at once

    async def _publish_loads(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._pace.load_period_s)
            due = loop.time() - self._published_at >= self._pace.heartbeat_s
            if due or self._load.loads() != self._published_loads:
                self._publish([])

    async def _snapshot(self, payload: Payload) -> AsyncGenerator[bytes, None]:
        self._flush()
        changes = list(self._log.snapshot())
        yield _ENCODER.encode(Snapshot(self.birth, self._number, changes, self._load.loads()))
