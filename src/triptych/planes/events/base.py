"""The event-plane port: reports the KV cache and the load of a worker to every frontend that follows it.

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
    """Greatest age of what a follower knows of a worker's load."""
    heartbeat_s: float = 1.0
    """A publisher sends something at least this often, so that followers notice a lost one."""
    silence_s: float = 5.0
    """A worker that sends nothing for so long is asked, or given up."""
    resync_s: float = 0.5
    """Least time between two snapshots of one worker."""


USUAL = EventPace()
WAITING = 256
"""Most messages that a carrier keeps for a slow follower, at either end. Further ones are lost, which the follower
notices."""


class Publisher(Protocol):
    """The side of a worker. For one event loop. Nothing else in the worker waits for it."""

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
    """The side of a frontend."""

    def follow(self, instance: Instance, frontend_id: str) -> AsyncGenerator[WorkerUpdate, None]:
        """Yields updates of ``instance`` until closed. The first one, and one after a gap, has a snapshot in ``kv``.

        ``load`` is that of all frontends but ``frontend_id``. Raises NotFound if the worker publishes nothing, and
        another TriptychError when no more updates can come: what came before may not be true any more.
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
        """Sends messages in order. Never waits: without room a message is lost. Does nothing before ``open``."""
        ...

    async def close(self) -> None:
        """Closes connections. May be called twice."""
        ...


class Inbox(Protocol):
    """Messages of one publisher, in order. After a break some may come again. Bounded: some may be missing."""

    async def receive(self) -> bytes: ...


class EventReceiver(Protocol):
    """A carrier's end at a follower."""

    scheme: str
    """The scheme of ``Instance.events`` of workers that this carrier reaches."""

    def listen(self, instance: Instance) -> AbstractAsyncContextManager[Inbox]:
        """Receives the messages of ``instance`` within the block, from its begin on or soon after."""
        ...

    async def close(self) -> None:
        """Closes connections. May be called twice."""
        ...
