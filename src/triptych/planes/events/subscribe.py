"""A frontend's side of publish and subscribe: listen first, then ask for a snapshot, and again whenever it must be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from triptych.contracts.card import Instance
from triptych.contracts.errors import TriptychError, WorkerLost
from triptych.contracts.kv_events import SNAPSHOT, News, Snapshot, Told
from triptych.planes.events.base import SILENCE_S, Inlet, Mail
from triptych.planes.events.request import RequestSource
from triptych.planes.events.tail import Gap, Tail
from triptych.planes.request.base import RequestClient, peer_of

log = logging.getLogger("triptych.events")

RESYNC_S = 0.5
"""Between two snapshots of one worker, at least."""
A_TURN = 32
"""Messages that are read before others run; what waits is no reason to wait."""

_TOLD = msgspec.msgpack.Decoder(Told)
_SNAPSHOT = msgspec.msgpack.Decoder(Snapshot)


class PubSubSource:
    """Follows workers by an ``Inlet``; those that it does not reach, over the request plane.

    A carrier that is away costs nothing but promptness: each worker is asked for a snapshot every ``SILENCE_S`` then.
    """

    def __init__(self, client: RequestClient, inlet: Inlet) -> None:
        self._client = client
        self._inlet = inlet
        self._streams = RequestSource(client)

    async def follow(self, instance: Instance, origin: str) -> AsyncGenerator[News, None]:
        reached = instance.events.startswith(f"{self._inlet.scheme}:")
        following = self._follow(instance, origin) if reached else self._streams.follow(instance, origin)
        async with aclosing(following) as told:
            async for one in told:
                yield one

    async def _follow(self, instance: Instance, origin: str) -> AsyncGenerator[News, None]:
        tail, ear, loop = Tail(origin), _Ear(instance.name), asyncio.get_running_loop()
        while True:
            async with self._inlet.listen(instance) as mail:
                while not ear.is_in_vain:
                    asked_at = loop.time()
                    yield tail.begin(await self._snapshot(instance))
                    try:
                        while True:
                            if news := tail.hear(await ear.next(mail)):
                                yield news
                    except Gap as gap:
                        log.info("%s is asked for a snapshot: %s", instance.name, gap)
                    await asyncio.sleep(asked_at + RESYNC_S - loop.time())
            ear.is_in_vain = False

    async def _snapshot(self, instance: Instance) -> Snapshot:
        call = self._client.call(peer_of(instance), SNAPSHOT, b"", silence_s=SILENCE_S)
        async with call as batches:
            async for payloads in batches:
                try:
                    return _SNAPSHOT.decode(payloads[0])
                except msgspec.MsgspecError as error:
                    raise TriptychError(f"its snapshot is of another version: {error}") from error
        raise WorkerLost("the worker gave no snapshot")

    async def close(self) -> None:
        await self._inlet.close()


class _Ear:
    """Reads one worker's mail."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._received = 0
        self._said: set[str] = set()
        self.is_in_vain = False
        """Nothing came for so long that one had better listen anew."""

    async def next(self, mail: Mail) -> Told:
        """The next message that is one. Raises Gap after a long silence."""
        try:
            async with asyncio.timeout(SILENCE_S):
                while True:
                    payload = await mail.receive()
                    self._received += 1
                    if self._received % A_TURN == 0:
                        await asyncio.sleep(0)
                    try:
                        return _TOLD.decode(payload)
                    except msgspec.MsgspecError as error:
                        self._warn("dropping what comes in its name and is no event of this version", error)
        except TimeoutError:
            self.is_in_vain = True
            self._warn("nothing that it publishes arrives; it is asked now and then", "until something does")
            raise Gap(f"silent for {SILENCE_S:g} s") from None

    def _warn(self, what: str, more: object) -> None:
        """Once a follower: where there is one, there may be many."""
        if what not in self._said:
            log.warning("%s: %s: %s", self._name, what, more)
        self._said.add(what)
