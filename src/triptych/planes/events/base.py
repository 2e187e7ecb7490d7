"""Defines the port of the event plane, which reports a worker's KV cache and load to frontends that follow it.

A follower knows, after each message, the worker's state at some moment: it begins with a snapshot, and then gets every
change in order. It notices lost changes, and gets a new snapshot in their place.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from triptych.contracts.card import Instance
from triptych.contracts.kv_events import WorkerUpdate
from triptych.kv.log import KvLog
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.request.base import Handler


@dataclass(frozen=True, slots=True)
class EventPace:
    """How often publishers send, and how long followers wait for them."""

    load_period_s: float = 0.25
    """The maximum age of a worker's load as a follower knows it."""
    heartbeat_s: float = 1.0
    """A publisher sends something at least this often, so that followers notice a lost one."""
    silence_s: float = 5.0
    """A worker that sends nothing for so long is asked for a snapshot, or given up."""
    resync_s: float = 0.5
    """The minimum time between two snapshots of one worker."""


USUAL = EventPace()
WAITING = 256
"""The limit on messages that a carrier keeps for a slow follower, at either end. Further messages are lost, which the
follower notices."""


class Publisher(Protocol):
    """The worker's side of the plane. For one event loop. Nothing else in the worker waits for it."""

    async def start(self, log: KvLog, load_tracker: LoadTracker) -> str:
        """Starts to publish. Returns the address for ``Instance.events``. Raises ConfigError."""
        ...

    def endpoints(self) -> dict[str, Handler]:
        """Returns the endpoints that followers call on the request plane."""
        ...

    async def close(self) -> None:
        """Closes connections. May be called twice."""
        ...


class Source(Protocol):
    """The frontend's side of the plane."""

    def follow(self, instance: Instance, frontend_id: str) -> AsyncGenerator[WorkerUpdate, None]:
        """Yields updates of ``instance`` until closed. The first one, and one after a gap, has a snapshot in ``kv``.

        ``load`` is that of all frontends but ``frontend_id``. Raises NotFound if the worker publishes nothing, and
        another TriptychError if no more updates can come: earlier updates may be out of date then.
        """
        ...

    async def close(self) -> None:
        """Closes connections. May be called twice."""
        ...


class EventSender(Protocol):
    """A carrier's end at a publisher: sends messages to all subscribers, and may lose some."""

    async def open(self, birth: str, on_subscriber: Callable[[], None]) -> str:
        """Opens the sender. Returns the address to subscribe to.

        ``birth`` names the publisher. ``on_subscriber`` is called when somebody may have subscribed, or missed
        messages. Raises ConfigError, and leaves nothing behind.
        """
        ...

    def send(self, message: bytes) -> None:
        """Sends messages in order. Never waits: if there is no room, the message is lost. Does nothing before
        ``open``."""
        ...

    async def close(self) -> None:
        """Closes connections. May be called twice."""
        ...


class Inbox(Protocol):
    """The messages of one publisher, in order. After a reconnection some may be repeated; some may be missing."""

    async def receive(self) -> bytes: ...


class EventReceiver(Protocol):
    """A carrier's end at a follower."""

    scheme: str
    """The scheme of ``Instance.events`` of workers that this carrier reaches."""

    def listen(self, instance: Instance) -> AbstractAsyncContextManager[Inbox]:
        """Receives the messages of ``instance`` within the block, from its start or from soon after it."""
        ...

    async def close(self) -> None:
        """Closes connections. May be called twice."""
        ...
