"""Carries events over NATS: each namespace has one stream in memory, with a subject for each publisher.

Messages are published without waiting for the server's confirmation: their numbers tell followers what is missing. A
follower whose connection broke gets the messages that the stream still has, and drops those that it knows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import nats.errors
from nats.aio.msg import Msg
from nats.js import api
from nats.js import errors as js_errors

from triptych.aio.tasks import TaskSet
from triptych.contracts.card import Instance
from triptych.contracts.errors import ConfigError
from triptych.planes.events.base import USUAL, WAITING, Inbox
from triptych.planes.nats.access import NatsAccess
from triptych.planes.nats.link import RETRY_S, Link, NatsProblem, connect, connect_again, connect_first, heed_cancel
from triptych.planes.nats.problems import problems

log = logging.getLogger("triptych.events")

SCHEME = "jetstream"
STREAM_BYTES = 16 << 20
"""The stream's limit, beyond which the oldest messages are dropped. With discovery's bucket, it is far below the limit
of a server that we start."""
STREAM_AGE_S = 60.0
PENDING_BYTES = 32 << 20
"""The limit on bytes of messages that are received and not handled yet."""
FIRST_OPEN_S = 15.0
"""Longer than the servers of a cluster take to elect a new leader."""
REQUEST_TIMEOUT_S = 2.0
UNUSED_S = 30.0
"""The server removes the consumer of a process that is gone after so long."""
_ANOTHER_CONFIG = (10058,)


class EventStream:
    """The stream of ``namespace`` over one connection. Raises NatsProblem if that fails, and NoJetStream."""

    def __init__(self, link: Link, namespace: str) -> None:
        self._link = link
        self._js = link.client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self.name = f"triptych-events-{namespace}"
        self._prefix = prefix(namespace)

    async def create(self) -> None:
        """Makes the stream if it does not exist; an existing one is used as it is."""
        with problems(f"stream {self.name}"):
            try:
                await self._js.stream_info(self.name)
                return
            except js_errors.NotFoundError:
                pass
            try:
                await self._js.add_stream(
                    name=self.name,
                    description="Triptych: what happens in workers",
                    subjects=[f"{self._prefix}*"],
                    storage=api.StorageType.MEMORY,
                    discard=api.DiscardPolicy.OLD,
                    max_bytes=STREAM_BYTES,
                    max_age=STREAM_AGE_S,
                    num_replicas=1,
                )
            except js_errors.BadRequestError as error:
                if error.err_code not in _ANOTHER_CONFIG:  # somebody else was first
                    raise

    @asynccontextmanager
    async def messages(self, take: Callable[[str, bytes], None], *, again: bool) -> AsyncIterator[str]:
        """Calls ``take`` with the publisher and each message, within the block. With ``again``, older messages come
        too.

        Yields the consumer's name for ``check``.
        """
        size = len(self._prefix)

        async def on_message(message: Msg) -> None:
            take(message.subject[size:], message.data)

        with problems(f"following {self.name}"):
            inbox = self._link.client.new_inbox()
            subscription = await self._link.client.subscribe(inbox, cb=on_message, pending_bytes_limit=PENDING_BYTES)
            config = api.ConsumerConfig(
                deliver_subject=inbox,
                deliver_policy=api.DeliverPolicy.ALL if again else api.DeliverPolicy.NEW,
                ack_policy=api.AckPolicy.NONE,
                inactive_threshold=UNUSED_S,
                mem_storage=True,
                num_replicas=1,
            )
            consumer = await self._js.add_consumer(self.name, config)
        try:
            yield consumer.name
        finally:
            with suppress(nats.errors.Error, OSError, TimeoutError):
                await subscription.unsubscribe()

    async def check(self, consumer: str) -> None:
        """Returns only if server, stream and ``consumer`` are there."""
        with problems(f"following {self.name}"):
            await self._js.consumer_info(self.name, consumer)


def prefix(namespace: str) -> str:
    return f"triptych.{namespace}.events."


class JetStreamSender:
    """Publishes over a connection of its own, for as long as the process lives."""

    def __init__(self, access: NatsAccess, namespace: str) -> None:
        self._access, self._namespace = access, namespace
        self._subject = ""
        self._on_subscriber: Callable[[], None] = lambda: None
        self._link: Link | None = None
        self._waiting: deque[bytes] = deque(maxlen=WAITING)
        self._wake = asyncio.Event()
        self._tasks = TaskSet()

    async def open(self, birth: str, on_subscriber: Callable[[], None]) -> str:
        self._subject, self._on_subscriber = prefix(self._namespace) + birth, on_subscriber
        deadline = time.monotonic() + FIRST_OPEN_S
        while True:
            try:
                self._link = link = await connect_first(self._access, "events")
                await EventStream(link, self._namespace).create()
                break
            except NatsProblem as error:
                await self.close()
                if time.monotonic() > deadline:
                    raise ConfigError(f"cannot publish at NATS ({self._access}): {error}") from error
                await asyncio.sleep(RETRY_S)
            except BaseException:
                await self.close()
                raise
        self._tasks.spawn(self._run(link), "publish")
        return f"{SCHEME}:{birth}"

    def send(self, message: bytes) -> None:
        self._waiting.append(message)
        self._wake.set()

    async def _run(self, link: Link) -> None:
        while True:
            try:
                await self._publish(link)
            except NatsProblem as error:
                log.warning("NATS (%s) is away: %s; publishing again when it is back", self._access, error)
            await link.close()
            self._link = link = await self._connect_again()
            self._on_subscriber()

    async def _publish(self, link: Link) -> None:
        with problems("publishing"):
            while True:
                heed_cancel()
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    message = self._waiting.popleft()
                    if len(message) <= link.client.max_payload:
                        await link.client.publish(self._subject, message)
                        heed_cancel()

    async def _connect_again(self) -> Link:
        while True:
            link = await connect_again(self._access, "events")
            try:
                await EventStream(link, self._namespace).create()
                return link
            except (NatsProblem, ConfigError):
                await link.close()
            except BaseException:
                await link.close()
                raise

    async def close(self) -> None:
        await self._tasks.close()
        if self._link is not None:
            link, self._link = self._link, None
            await link.close()


class JetStreamReceiver:
    """Shares one connection for all workers of the namespace, which is made when the first one is followed."""

    scheme = SCHEME

    def __init__(self, access: NatsAccess, namespace: str, *, silence_s: float = USUAL.silence_s) -> None:
        self._silence_s = silence_s
        self._access, self._namespace = access, namespace
        self._inboxes: dict[str, _Inbox] = {}
        self._listening = asyncio.Event()
        self._has_received = False
        self._tasks = TaskSet()

    @asynccontextmanager
    async def listen(self, instance: Instance) -> AsyncIterator[Inbox]:
        birth = instance.events.removeprefix(f"{SCHEME}:")
        inbox = self._inboxes[birth] = _Inbox()
        try:
            if not len(self._tasks):
                self._tasks.spawn(self._run(), "follow the event stream")
            with suppress(TimeoutError):  # after a timeout a gap is noticed once the follower listens
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    await self._listening.wait()
            yield inbox
        finally:
            if self._inboxes.get(birth) is inbox:
                del self._inboxes[birth]

    async def _run(self) -> None:
        again = False
        while True:
            try:
                link = await (connect_again if again else connect)(self._access, "events")
            except (NatsProblem, ConfigError):
                again = True
                continue
            try:
                await self._follow(link, again=again)
            except (NatsProblem, ConfigError) as error:
                if self._listening.is_set():
                    log.warning("NATS (%s) is away: %s; asking workers until it is back", self._access, error)
            finally:
                again = True
                self._listening.clear()
                await link.close()

    async def _follow(self, link: Link, *, again: bool) -> None:
        """Distributes messages as they come. Raises NatsProblem when no more can come."""
        stream = EventStream(link, self._namespace)
        await stream.create()
        self._has_received = False
        async with stream.messages(self._take, again=again) as consumer:
            self._listening.set()
            while True:
                heed_cancel()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._silence_s):
                        await link.lost.wait()
                    raise NatsProblem("the connection was lost")
                if self._inboxes and not self._has_received:
                    await stream.check(consumer)
                self._has_received = False

    def _take(self, birth: str, message: bytes) -> None:
        self._has_received = True
        if (inbox := self._inboxes.get(birth)) is not None:
            inbox.put(message)

    async def close(self) -> None:
        await self._tasks.close()


class _Inbox:
    """The newest messages for one follower."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque(maxlen=WAITING)
        self._wake = asyncio.Event()

    def put(self, message: bytes) -> None:
        self._waiting.append(message)
        self._wake.set()

    async def receive(self) -> bytes:
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.popleft()
