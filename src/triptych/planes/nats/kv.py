"""Reads, writes and watches one JetStream key-value bucket, over one connection.

A write names the revision that it follows, so that of two concurrent writes one fails. Callers interpret the values.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from types import MappingProxyType

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.js import api
from nats.js import errors as js_errors

from triptych.planes.nats.link import Link, NatsProblem
from triptych.planes.nats.problems import problems

REQUEST_TIMEOUT_S = 2.0
SNAPSHOT_TIMEOUT_S = 2.0
"""The time to read the first content of a bucket. Entries that arrive later come as changes."""
UNUSED_S = 30.0
"""The server removes the watch of a process that is gone after so long."""
MAX_HEADER_BYTES = 1024
MAX_BEHIND = 100_000
"""The limit on unread messages of a watcher. Beyond it, the watch breaks and has to begin again."""

_OPERATION = "KV-Operation"
_MARKER = "Nats-Marker-Reason"
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_WRONG_REVISION = (10071, 10164)
_ANOTHER_CONFIG = (10058,)
_STORE_FAILED, _FULL = 10077, "maximum bytes exceeded"
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class WrongRevision(Exception):
    """Somebody else wrote this key, or it is gone."""


class BucketFull(Exception):
    """The bucket holds as many bytes as it may."""


class BucketConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of a bucket that does not exist yet."""

    name: str
    description: str
    ttl_s: float | None = None
    """The time after its last write at which each key expires. None if only the keys' own time to live counts."""
    max_bytes: int = -1
    """The limit on bytes of all keys, values and headers; -1 for no limit."""
    in_memory: bool = True
    """Whether the bucket is in memory. Otherwise it is on the server's disk, and comes back after a restart."""


class KvEntry(msgspec.Struct, frozen=True):
    """A key as it was found, or a change of it."""

    key: str
    revision: int
    value: bytes | None
    """The value; None if the key was deleted."""
    headers: Mapping[str, str]
    written: datetime | None = None
    """When it was written, by the server's clock."""
    age_s: float = 0.0
    """The age in seconds of an entry that was found in the bucket, by the server's clock alone; 0 for a change."""


class _Cluster(msgspec.Struct, frozen=True):
    leader: str = ""


class _StreamInfo(msgspec.Struct):
    """The parts of a server's answer that are used."""

    ts: datetime | None = None
    """The server's time; old servers do not tell."""
    cluster: _Cluster = _Cluster()
    """The server that takes writes, if several keep the bucket together."""


class KvBucket:
    """One bucket over one connection. Raises NatsProblem when the connection fails, or its subclass StreamGone."""

    def __init__(self, link: Link, config: BucketConfig) -> None:
        self._link = link
        self._js = link.client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self._config = config
        self.name = config.name
        self._stream = f"KV_{config.name}"
        self._prefix = f"$KV.{config.name}."

    @property
    def max_value_bytes(self) -> int:
        """The maximum length of a value that the server takes, headers not included."""
        return self._link.client.max_payload - MAX_HEADER_BYTES

    async def create(self) -> api.StreamConfig:
        """Makes the bucket if it does not exist; an existing one is used as it is.

        Returns the settings that it has. Raises NoJetStream.
        """
        with problems(f"bucket {self.name}"):
            try:
                return (await self._js.stream_info(self._stream)).config
            except js_errors.NotFoundError:
                pass
            try:
                await self._js.create_key_value(
                    bucket=self.name,
                    description=self._config.description,
                    ttl=self._config.ttl_s,
                    max_bytes=self._config.max_bytes,
                    history=1,
                    storage=api.StorageType.MEMORY if self._config.in_memory else api.StorageType.FILE,
                )
            except js_errors.BadRequestError as error:
                if error.err_code not in _ANOTHER_CONFIG:  # somebody else was first
                    raise
            return (await self._js.stream_info(self._stream)).config

    async def put(self, key: str, value: bytes, after: int | None, headers: Mapping[str, str] = _NO_HEADERS) -> int:
        """Returns the revision of the write, which follows revision ``after`` (0: no such key; None: any).

        Raises WrongRevision and BucketFull.
        """
        follows = {} if after is None else {_EXPECTED: str(after)}
        with problems(f"writing {key}"):
            try:
                done = await self._js.publish(self._prefix + key, value, headers={**follows, **headers} or None)
            except js_errors.APIError as error:
                if error.err_code in _WRONG_REVISION:
                    raise WrongRevision(key) from error
                if error.err_code == _STORE_FAILED and _FULL in (error.description or ""):
                    raise BucketFull(self.name) from error
                raise
            return done.seq

    async def delete(self, key: str, after: int | None, headers: Mapping[str, str] = _NO_HEADERS) -> None:
        """Writes that ``key`` is deleted. Raises as ``put``."""
        await self.put(key, b"", after, {_OPERATION: "DEL", **headers})

    async def get(self, key: str) -> KvEntry | None:
        """Returns the key's last write, which may be a deletion, or None. Its age is not known."""
        with problems(f"reading {key}"):
            try:
                found = await self._js.get_msg(self._stream, subject=self._prefix + key)
            except js_errors.NotFoundError as error:
                if error.err_code == 10059:
                    raise
                return None
            headers = found.headers or {}
            return KvEntry(key, found.seq or 0, _value(found.data, headers), headers, found.time)

    async def now(self) -> datetime:
        """Returns the server's time, or this host's if the server is too old to tell it."""
        with problems(f"asking {self.name}"):
            return (await self._info()).ts or datetime.now(UTC)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Watch]:
        """Follows the bucket within the block. A connection can have one watch."""
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

    async def check(self, consumer: api.ConsumerInfo, leader: str) -> int:
        """Checks that server and watch exist. Everything that they sent before has arrived when this returns.

        Returns the number of messages that are yet to be sent. A watch outlives the ``leader`` of a cluster, without
        which no key could be renewed for seconds.
        """
        with problems(f"watching {self.name}"):
            if (await self._info()).cluster.leader != leader:
                raise NatsProblem(f"{leader or 'the server'} does not lead any more")
            return (await self._js.consumer_info(self._stream, consumer.name)).num_pending or 0

    async def _info(self) -> _StreamInfo:
        answer = await self._link.client.request(f"$JS.API.STREAM.INFO.{self._stream}", timeout=REQUEST_TIMEOUT_S)
        return msgspec.json.decode(answer.data, type=_StreamInfo)

    def entry(self, message: Msg, server_time: datetime | None) -> KvEntry:
        """Returns the entry in a message.

        ``server_time`` is when the watch began, for entries that existed then; None for later changes.
        """
        key, meta, headers = message.subject.removeprefix(self._prefix), message.metadata, message.headers or {}
        written = meta.timestamp.astimezone(UTC)
        age_s = (server_time - written).total_seconds() if server_time else 0.0
        value = _value(message.data, headers)
        return KvEntry(key, meta.sequence.stream, value, headers, written, max(0.0, age_s))


class Watch:
    """Watches a bucket: its content, and then every change."""

    def __init__(
        self, bucket: KvBucket, queue: asyncio.Queue[Msg | None], consumer: api.ConsumerInfo, info: _StreamInfo
    ) -> None:
        self._bucket = bucket
        self._queue = queue
        self._consumer = consumer
        self._began, self._leader = info.ts, info.cluster.leader
        self.is_late = False
        """Whether the snapshot may be incomplete."""

    async def snapshot(self) -> list[KvEntry]:
        """Returns the content of the bucket. Call it once, before anything else."""
        found: list[KvEntry] = []
        self.is_late = bool(self._consumer.num_pending)
        with suppress(TimeoutError):
            async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
                while self.is_late:
                    message = self._connected(await self._queue.get())
                    found.append(self._bucket.entry(message, self._began))
                    self.is_late = message.metadata.num_pending != 0
        return found

    async def next_entry(self, timeout_s: float) -> KvEntry | None:
        """Returns the next write or deletion, or None if there was none for ``timeout_s``."""
        if self._queue.empty():
            try:
                async with asyncio.timeout(timeout_s):
                    message = await self._queue.get()
            except TimeoutError:
                return None
        else:
            if self._queue.qsize() > MAX_BEHIND:
                raise NatsProblem(f"{self._queue.qsize()} changes of {self._bucket.name} were not read in time")
            message = self._queue.get_nowait()
        return self._bucket.entry(self._connected(message), None)

    async def check(self) -> int:
        """Checks the watch; see ``KvBucket.check``."""
        return await self._bucket.check(self._consumer, self._leader)

    def _connected(self, message: Msg | None) -> Msg:
        if message is None:
            raise NatsProblem("the connection was lost")
        return message


def _value(data: bytes | None, headers: Mapping[str, str]) -> bytes | None:
    return None if _OPERATION in headers or _MARKER in headers else data or b""
