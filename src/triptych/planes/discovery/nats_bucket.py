"""One namespace's key-value bucket: a key for each worker's name, in memory, gone ``TTL_S`` after its last renewal.

Writes say which revision they follow, so that of two who write at once one fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.js import api
from nats.js import errors as js_errors

from triptych.contracts.card import Instance
from triptych.planes.nats.link import Link, NatsProblem
from triptych.planes.nats.problems import problems

log = logging.getLogger("triptych.discovery")

TTL_S = 2.5
REQUEST_TIMEOUT_S = 2.0
SNAPSHOT_TIMEOUT_S = 2.0
"""For what is in the bucket at first; what takes longer comes as news."""
UNUSED_S = 30.0
"""The server forgets the watch of a process that is gone after so long."""

_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_OPERATION = "KV-Operation"
_WRONG_REVISION = (10071, 10164)
_ANOTHER_CONFIG = (10058,)


class WrongRevision(Exception):
    """Somebody else wrote this key, or it is gone."""


class Registration(msgspec.Struct, frozen=True):
    """What a key holds."""

    instance: Instance
    born: int = 0
    """The revision of its first write; 0: this one is. The server counts, so that all see the same order."""


class Entry(msgspec.Struct, frozen=True):
    """A key as it was found, or what became of it."""

    key: str
    revision: int
    registration: Registration | None
    """None: withdrawn, or nothing that this version can read."""
    age_s: float = 0.0
    """How long it had been in the bucket when it was found there, by the server's clock alone; 0 for news."""

    @property
    def born(self) -> int:
        return (self.registration.born if self.registration else 0) or self.revision


class _Cluster(msgspec.Struct, frozen=True):
    leader: str = ""


class _StreamInfo(msgspec.Struct):
    """What is read of an answer of the server."""

    ts: datetime | None = None
    """The server's time; old servers do not tell."""
    cluster: _Cluster = _Cluster()
    """Who takes writes, where several servers keep the bucket together."""


_DECODER = msgspec.json.Decoder(Registration)


def key_of(name: str) -> str:
    """``name`` as a key, which takes few characters: others become ``=`` and two hexadecimal digits a byte."""
    return "".join(
        chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "-_") else f"={byte:02X}"
        for byte in name.encode()
    )


class Bucket:
    """The bucket of ``namespace`` over one connection. Raises NatsProblem when that fails, StreamGone among it."""

    def __init__(self, link: Link, namespace: str) -> None:
        self._link = link
        self._js = link.client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self.name = f"triptych-{namespace}"
        self._stream = f"KV_{self.name}"
        self._prefix = f"$KV.{self.name}."
        self._unreadable: set[str] = set()

    async def create(self) -> None:
        """Make the bucket where there is none; one that is there is used as it is. Raises NoJetStream."""
        with problems(f"bucket {self.name}"):
            try:
                await self._js.stream_info(self._stream)
                return
            except js_errors.NotFoundError:
                pass
            try:
                await self._js.create_key_value(
                    bucket=self.name,
                    description="Triptych: who is alive",
                    ttl=TTL_S,
                    history=1,
                    storage=api.StorageType.MEMORY,
                )
            except js_errors.BadRequestError as error:
                if error.err_code not in _ANOTHER_CONFIG:  # somebody else was first
                    raise

    async def put(self, key: str, registration: Registration, after: int) -> int:
        """The revision of the write, which follows revision ``after`` (0: no such key). Raises WrongRevision."""
        return await self._publish(key, msgspec.json.encode(registration), {_EXPECTED: str(after)})

    async def delete(self, key: str, after: int) -> None:
        """Raises WrongRevision where the last write is not ``after``."""
        await self._publish(key, b"", {_EXPECTED: str(after), _OPERATION: "DEL"})

    async def _publish(self, key: str, payload: bytes, headers: dict[str, str]) -> int:
        with problems(f"writing {key}"):
            try:
                done = await self._js.publish(self._prefix + key, payload, headers=headers)
            except js_errors.APIError as error:
                if error.err_code in _WRONG_REVISION:
                    raise WrongRevision(key) from error
                raise
            return done.seq

    async def get(self, key: str) -> Entry | None:
        """The key's last write, a withdrawal too; None: there is none."""
        with problems(f"reading {key}"):
            try:
                found = await self._js.get_msg(self._stream, subject=self._prefix + key)
            except js_errors.NotFoundError as error:
                if error.err_code == 10059:
                    raise
                return None
            return Entry(key, found.seq or 0, self._read(key, found.data or b""))

    async def entries(self) -> list[Entry]:
        """All that is in the bucket now and is a registration."""
        async with self.watch() as watch:
            return [entry for entry in await watch.snapshot() if entry.registration]

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Watch]:
        """Follow the bucket within the block."""
        queue: asyncio.Queue[Msg | None] = asyncio.Queue()

        async def take(message: Msg) -> None:
            queue.put_nowait(message)

        with problems(f"watching {self.name}"):
            info = await self._info()
            config = api.ConsumerConfig(
                deliver_subject=self._link.client.new_inbox(),
                deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT,
                ack_policy=api.AckPolicy.NONE,
                filter_subject=f"{self._prefix}>",
                inactive_threshold=UNUSED_S,
                mem_storage=True,
                num_replicas=1,
            )
            consumer = await self._js.add_consumer(self._stream, config)
            # Delivery begins with the subscription, so that ``num_pending`` is all that there is.
            subscription = await self._link.client.subscribe(config.deliver_subject or "", cb=take)
        self._link.on_lost = lambda: queue.put_nowait(None)
        if self._link.lost.is_set():
            queue.put_nowait(None)
        try:
            yield Watch(self, queue, consumer, info)
        finally:
            self._link.on_lost = lambda: None
            with suppress(nats.errors.Error, OSError, TimeoutError):
                await subscription.unsubscribe()

    async def check(self, consumer: api.ConsumerInfo, leader: str) -> None:
        """Return only if server and watch are there; what they sent before this has then arrived.

        A watch outlives the ``leader`` of a cluster, without whom nobody could renew for seconds.
        """
        with problems(f"watching {self.name}"):
            if (await self._info()).cluster.leader != leader:
                raise NatsProblem(f"{leader or 'the server'} does not lead any more")
            await self._js.consumer_info(self._stream, consumer.name)

    async def _info(self) -> _StreamInfo:
        answer = await self._link.client.request(f"$JS.API.STREAM.INFO.{self._stream}", timeout=REQUEST_TIMEOUT_S)
        return msgspec.json.decode(answer.data, type=_StreamInfo)

    def entry(self, message: Msg, server_time: datetime | None) -> Entry:
        """``server_time``: when the watch began, for what was there by then; None: it is news."""
        key = message.subject.removeprefix(self._prefix)
        meta = message.metadata
        age_s = (server_time - meta.timestamp.astimezone(UTC)).total_seconds() if server_time else 0.0
        return Entry(key, meta.sequence.stream, self._read(key, message.data), max(0.0, age_s))

    def _read(self, key: str, value: bytes) -> Registration | None:
        """None for an empty value (withdrawn, or expired), and with one warning for what is no registration."""
        if not value:
            return None
        try:
            return _DECODER.decode(value)
        except msgspec.MsgspecError as error:
            if key not in self._unreadable:
                log.warning("ignoring key %s of %s, which is no worker of this version: %s", key, self.name, error)
            self._unreadable.add(key)
            return None


class Watch:
    """What is in a bucket, and what happens to it."""

    def __init__(
        self, bucket: Bucket, queue: asyncio.Queue[Msg | None], consumer: api.ConsumerInfo, info: _StreamInfo
    ) -> None:
        self._bucket = bucket
        self._queue = queue
        self._consumer = consumer
        self._began, self._leader = info.ts, info.cluster.leader

    async def snapshot(self) -> list[Entry]:
        """What is in the bucket. Call it once, first."""
        found: list[Entry] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(SNAPSHOT_TIMEOUT_S if self._consumer.num_pending else 0):
                while self._consumer.num_pending:
                    message = self._connected(await self._queue.get())
                    found.append(self._bucket.entry(message, self._began))
                    if message.metadata.num_pending == 0:
                        break
        return found

    async def news(self, timeout_s: float) -> Entry | None:
        """The next write or withdrawal; None: nothing for ``timeout_s``."""
        if self._queue.empty():
            try:
                async with asyncio.timeout(timeout_s):
                    message = await self._queue.get()
            except TimeoutError:
                return None
        else:
            message = self._queue.get_nowait()
        return self._bucket.entry(self._connected(message), None)

    async def check(self) -> None:
        """``Bucket.check``"""
        await self._bucket.check(self._consumer, self._leader)

    def _connected(self, message: Msg | None) -> Msg:
        if message is None:
            raise NatsProblem("the connection was lost")
        return message
