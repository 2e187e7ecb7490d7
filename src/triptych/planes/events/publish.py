"""A worker's side of publish and subscribe: messages made once for all followers, numbered, and snapshots by number."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from triptych.aio.tasks import TaskSet
from triptych.contracts.kv_events import SNAPSHOT, KvChange, Load, Snapshot, Told
from triptych.kv.log import KvLog
from triptych.planes.events.base import HEARTBEAT_S, LOAD_PERIOD_S, Outlet
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.events.request import RequestPublisher
from triptych.planes.request.base import Handler, Payload

MESSAGE_BYTES = 256 << 10
"""A larger message is not sent: its number is missing then, which makes followers ask for a snapshot."""

_ENCODER = msgspec.msgpack.Encoder()


class PubSubPublisher:
    """Tells by an ``Outlet``, and answers followers that do not listen there as ``RequestPublisher`` does.

    Changes of one turn of the event loop make one message. A snapshot and the number that it goes by are of one moment.
    """

    def __init__(self, outlet: Outlet) -> None:
        self.birth = secrets.token_hex(8)
        self._outlet = outlet
        self._streams = RequestPublisher()
        self._log = KvLog(list)
        self._account = LoadTracker()
        self._stop_listening: Callable[[], None] = lambda: None
        self._number = 0
        self._waiting: list[KvChange] = []
        self._due = False
        self._said: dict[str, Load] = {}
        self._spoke_at = 0.0
        self._tasks = TaskSet()

    async def start(self, log: KvLog, account: LoadTracker) -> str:
        self._log, self._account = log, account
        await self._streams.start(log, account)
        address = await self._outlet.open(self.birth, self._say_something)
        self._stop_listening = log.listen(self._hear)
        self._tasks.spawn(self._say_loads(), "tell loads")
        return address

    def endpoints(self) -> dict[str, Handler]:
        return {**self._streams.endpoints(), SNAPSHOT: self._snapshot}

    async def close(self) -> None:
        self._stop_listening()
        self._stop_listening = lambda: None
        await self._tasks.close()
        await self._outlet.close()

    def _hear(self, changes: Sequence[KvChange] | None) -> None:
        if changes is None:
            self._waiting.clear()
            self._number += 1  # as if a message had been lost
        else:
            self._waiting += changes
        self._say_something()

    def _say_something(self) -> None:
        """At the end of this turn of the event loop: what waits, or where we are."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if not self._due:
            return
        self._due = False
        changes, self._waiting = self._waiting, []
        self._tell(changes)

    def _tell(self, changes: list[KvChange]) -> None:
        loads = None
        if not changes:
            loads = self._said = self._account.loads()
        self._number += 1
        message = _ENCODER.encode(Told(self.birth, self._number, changes, loads))
        self._spoke_at = asyncio.get_running_loop().time()
        if len(message) <= MESSAGE_BYTES:
            self._outlet.send(message)
        elif changes:
            self._tell([])  # so that it is missed at once

    async def _say_loads(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOAD_PERIOD_S)
            if self._account.loads() != self._said or loop.time() - self._spoke_at >= HEARTBEAT_S:
                self._tell([])

    async def _snapshot(self, payload: Payload) -> AsyncGenerator[bytes, None]:
        self._flush()
        changes = list(self._log.snapshot())
        yield _ENCODER.encode(Snapshot(self.birth, self._number, changes, self._account.loads()))
