"""Follows workers by publish and subscribe.

A subscriber listens first and then asks for a snapshot; it asks again after every gap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from triptych.contracts.card import Instance
from triptych.contracts.errors import TriptychError, WorkerLost
from triptych.contracts.kv_events import SNAPSHOT, NumberedUpdate, Snapshot, WorkerUpdate
from triptych.planes.events.base import USUAL, EventPace, EventReceiver, Inbox
from triptych.planes.events.request import RequestSource
from triptych.planes.events.tail import Gap, Tail
from triptych.planes.request.base import RequestClient, peer_of

log = logging.getLogger("triptych.events")

A_TURN = 32
"""The limit on messages that are read in a row before other tasks run."""

_NUMBERED = msgspec.msgpack.Decoder(NumberedUpdate)
_SNAPSHOT = msgspec.msgpack.Decoder(Snapshot)


class PubSubSource:
    """Follows workers by an ``EventReceiver``; follows workers that it does not reach over the request plane.

    While the carrier is away, each worker is asked for a snapshot every ``silence_s``, so updates come later.
    """

    def __init__(self, client: RequestClient, receiver: EventReceiver, pace: EventPace = USUAL) -> None:
        self._pace = pace
        self._client = client
        self._receiver = receiver
        self._streams = RequestSource(client, pace)

    async def follow(self, instance: Instance, frontend_id: str) -> AsyncGenerator[WorkerUpdate, None]:
        reached = instance.events.startswith(f"{self._receiver.scheme}:")
        following = self._follow(instance, frontend_id) if reached else self._streams.follow(instance, frontend_id)
        async with aclosing(following) as updates:
            async for update in updates:
                yield update

    async def _follow(self, instance: Instance, frontend_id: str) -> AsyncGenerator[WorkerUpdate, None]:
        tail, reader, loop = Tail(frontend_id), _Reader(instance.name, self._pace.silence_s), asyncio.get_running_loop()
        while True:
            async with self._receiver.listen(instance) as inbox:
                while not reader.is_in_vain:
                    asked_at = loop.time()
                    yield tail.begin(await self._snapshot(instance))
                    try:
                        while True:
                            if update := tail.apply(await reader.next(inbox)):
                                yield update
                    except Gap as gap:
                        log.info("%s is asked for a snapshot: %s", instance.name, gap)
                    await asyncio.sleep(asked_at + self._pace.resync_s - loop.time())
            reader.is_in_vain = False

    async def _snapshot(self, instance: Instance) -> Snapshot:
        call = self._client.call(peer_of(instance), SNAPSHOT, b"", silence_s=self._pace.silence_s)
        async with call as batches:
            async for payloads in batches:
                try:
                    return _SNAPSHOT.decode(payloads[0])
                except msgspec.MsgspecError as error:
                    raise TriptychError(f"its snapshot is of another version: {error}") from error
        raise WorkerLost("the worker gave no snapshot")

    async def close(self) -> None:
        await self._receiver.close()


class _Reader:
    """Reads the inbox of one worker."""

    def __init__(self, name: str, silence_s: float) -> None:
        self._name = name
        self._silence_s = silence_s
        self._received = 0
        self._warned: set[str] = set()
        self.is_in_vain = False
        """Whether no message came for ``silence_s``, so that the caller has to subscribe again."""

    async def next(self, inbox: Inbox) -> NumberedUpdate:
        """Returns the next valid message. Raises Gap after ``silence_s`` without one."""
        try:
            async with asyncio.timeout(self._silence_s):
                while True:
                    payload = await inbox.receive()
                    self._received += 1
                    if self._received % A_TURN == 0:
                        await asyncio.sleep(0)
                    try:
                        return _NUMBERED.decode(payload)
                    except msgspec.MsgspecError as error:
                        self._warn("dropping what comes in its name and is no event of this version", error)
        except TimeoutError:
            self.is_in_vain = True
            self._warn("nothing that it publishes arrives; it is asked now and then", "until something does")
            raise Gap(f"silent for {self._silence_s:g} s") from None

    def _warn(self, what: str, more: object) -> None:
        """Warns once for each follower and reason: there may be many such messages."""
        if what not in self._warned:
            log.warning("%s: %s: %s", self._name, what, more)
        self._warned.add(what)
