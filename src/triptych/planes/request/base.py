"""Defines the port of the request plane: a call has one request payload, and a stream of payloads answers it.

Payloads are opaque bytes, whose content ``contracts`` defines. Errors cross as ``WireError``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from triptych.contracts.card import Instance

Payload = bytes | memoryview
"""A request as it arrives; a large one is a view of what was received."""
Handler = Callable[[Payload], AsyncGenerator[bytes, None]]
"""Serves one call. Its iterator is closed when the caller cancels or goes away."""


class Peer(NamedTuple):
    """The address to call, and the id of the worker that is meant.

    A worker with another id may have come to that address since; it refuses the call. An empty id means any worker.
    """

    host: str
    port: int
    id: str = ""


def peer_of(instance: Instance) -> Peer:
    return Peer(instance.host, instance.port, instance.id)


class Call(Protocol):
    """A call in progress. Use it as ``async with``: leaving the block early cancels the call at the peer.

    Iterating yields *batches*: all payloads that wait together, oldest first, never an empty list. The
    iteration raises the peer's error (a ``TriptychError``), ``WorkerUnreached`` when the connection could not be made
    or is gone before the peer took the call, ``WorkerLost`` when it is gone later and before the end, or
    ``WorkerSilent`` when the peer says nothing for ``silence_s``.
    """

    @property
    def taken(self) -> bool:
        """Whether the peer has confirmed that it has the call. From then on the call may be the cause of its loss."""
        ...

    def expect_within(self, silence_s: float) -> None:
        """Gives the peer up once it has sent nothing for ``silence_s``, from now on."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> AsyncIterator[list[bytes]]: ...


class RequestClient(Protocol):
    """Calls peers, over one kept connection to each."""

    def call(self, peer: Peer, endpoint: str, payload: bytes | Sequence[Payload], *, silence_s: float) -> Call:
        """Begins a call to ``endpoint`` at the peer; nothing is sent before the block is entered.

        A payload in pieces arrives as one; large pieces are not copied.
        """
        ...

    def is_silent(self, peer: Peer) -> bool:
        """Returns whether a sign of life of the peer is overdue, because it is late or gone."""
        ...

    def on_lost(self, callback: Callable[[Peer], None]) -> None:
        """Calls ``callback`` with each peer whose connection is gone although neither end had taken leave.

        It is called before that peer's calls fail. A peer that answers no ping counts as gone; a peer that discovery
        dropped before its connection closed does not.
        """
        ...

    def forget(self, peer: Peer) -> None:
        """Lets go of a peer that takes no new calls: its connection closes when the calls on it have ended."""
        ...

    async def close(self) -> None:
        """Closes every connection; calls in flight raise WorkerLost. May be called twice."""
        ...


class RequestServer(Protocol):
    """Answers the calls of peers."""

    @property
    def speaks_tls(self) -> bool:
        """Whether callers have to speak TLS."""
        ...

    async def start(
        self, handlers: dict[str, Handler], standing: dict[str, Handler] | None = None, *, id: str = ""
    ) -> tuple[str, int]:
        """Listens, and returns the (host, port) to register. Calls for another worker than ``id`` are refused.

        Calls to ``standing`` endpoints do not count as work: no limit applies to them, and no drain waits for them.
        """
        ...

    async def drain(self, timeout_s: float) -> None:
        """Refuses new calls (503) and waits until those in flight have ended, at most ``timeout_s``."""
        ...

    async def close(self) -> None:
        """Cancels the remaining calls and closes. May be called twice."""
        ...
