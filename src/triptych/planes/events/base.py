"""The event-plane port: what a worker's KV cache holds and what it has to do, to every frontend that follows it.

A frontend that follows knows, after each message, what was true of the worker at some moment: it begins with all that
there is, and then hears every change in order. Changes that were lost on the way are noticed, and all that there is
comes again in their place.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from triptych.contracts.card import Instance
from triptych.contracts.kv_events import News
from triptych.kv.log import KvLog
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.request.base import Handler

LOAD_PERIOD_S = 0.25
"""How old what is known of a worker's load may be."""
HEARTBEAT_S = 1.0
"""Something is said at least so often, so that a follower notices a peer that is silent for good."""
SILENCE_S = 5.0
"""A worker that says nothing for so long is asked, or given up."""

WAITING = 256
"""Messages that a carrier keeps for a follower who is slow, at either end; what then finds no room is lost, which the
follower notices."""


class Publisher(Protocol):
    """A worker's side. For one event loop; nothing that happens in the worker waits for it."""

    async def start(self, log: KvLog, account: LoadTracker) -> str:
        """Begin to tell. Returns where, for ``Instance.events``. Raises ConfigError."""
        ...

    def endpoints(self) -> dict[str, Handler]:
        """What followers call on the request plane."""
        ...

    async def close(self) -> None:
        """May be called twice."""
        ...


class Source(Protocol):
    """A frontend's side."""

    def follow(self, instance: Instance, origin: str) -> AsyncGenerator[News, None]:
        """What ``instance`` tells, until closed. The first has ``kv``, a snapshot, and so has one after a gap.

        ``load`` is that of all frontends but ``origin``. Raises NotFound where the worker tells nothing at all, and
        another TriptychError when it cannot be heard any more: what it said before may not be true any more.
        """
        ...

    async def close(self) -> None:
        """May be called twice."""
        ...


class Outlet(Protocol):
    """A carrier's end at a publisher: messages to all who listen, which it may lose."""

    async def open(self, birth: str, on_listener: Callable[[], None]) -> str:
        """Returns where to listen. ``on_listener`` is called when somebody may have begun to, or missed something.

        ``birth`` names the publisher. Raises ConfigError, after which nothing is left.
        """
        ...

    def send(self, message: bytes) -> None:
        """In order. Never waits; what there is no room for is lost. Without effect before ``open`` is done."""
        ...

    async def close(self) -> None:
        """May be called twice."""
        ...


class Mail(Protocol):
    """Messages of one publisher in order, each at most once or, after a break, again. Bounded: some may be missing."""

    async def receive(self) -> bytes: ...


class Inlet(Protocol):
    """A carrier's end at a follower."""

    scheme: str
    """What ``Instance.events`` of workers begins with that this carrier reaches."""

    def listen(self, instance: Instance) -> AbstractAsyncContextManager[Mail]:
        """Its messages from the block's begin on, or soon after."""
        ...

    async def close(self) -> None:
        """May be called twice."""
        ...
