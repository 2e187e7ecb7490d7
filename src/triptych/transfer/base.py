"""Defines the transfer port: tensors in a bounded arena, handed from worker to worker by handle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from triptych.contracts.tensor import TensorHandle

TRANSFER_FAILED = "transfer_failed"
"""The error code of a fetch that failed because of the owner or of the way to it."""


class Buffer(Protocol):
    """One reference to a tensor's bytes in a process's arena. The last ``close`` frees them.

    All holders share the bytes: the caller that allocated the buffer writes them once, and nobody writes them again.
    ``data`` is valid until the holder's own ``close``.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def data(self) -> memoryview:
        """The bytes: C-contiguous, format ``B``, writable."""
        ...

    def share(self) -> Buffer:
        """Returns one more reference to the same bytes, which is closed separately."""
        ...

    def close(self) -> None:
        """Gives this reference back. May be called twice."""
        ...


class TransferStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the counters, for metrics and leak checks."""

    capacity_bytes: int = 0
    """The limit on what the arena may ever hold."""
    reserved_bytes: int = 0
    """Memory taken from the machine so far (and registered with the network)."""
    used_bytes: int = 0
    """Bytes in live buffers, rounding included."""
    buffers: int = 0
    leases: int = 0
    """Number of exports that are neither fetched, released nor expired."""
    exported: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    failed: int = 0
    """Number of fetches that ended in an error."""
    expired: int = 0
    """Number of leases that expired because no process fetched them in time."""
    waiting: int = 0
    """Number of callers that wait for room."""


class Transfer(Protocol):
    """Moves tensors between this process and others. There is one for each process, for one event loop.

    No method blocks the loop. The arena is one bound on all buffers of the process, those made here and those fetched
    from others. Memory is taken (and registered) in slabs as it is needed, and kept for the life of the process.
    """

    @property
    def id(self) -> str:
        """The ``owner`` of this process's handles, unique to this life of the process."""
        ...

    async def start(self) -> None:
        """Starts the transfer. Raises ConfigError that says what to install or set if the back end cannot work here."""
        ...

    async def close(self) -> None:
        """Frees everything, leases included. Callers that wait for room get Unavailable. May be called twice."""
        ...

    async def allocate(self, shapes: Sequence[tuple[int, ...]], dtype: str) -> list[Buffer]:
        """Returns uninitialised buffers, all or none. If there is no room, calls ``reclaim`` and then waits for room.

        Raises Unavailable if the queue of waiting callers is full or the wait passes its time limit, and
        PayloadTooLarge for more than the arena could ever hold. Cancelling while it waits takes nothing.
        """
        ...

    def export(self, buffer: Buffer) -> TensorHandle:
        """Opens a lease: another process, or this one, may fetch the buffer once until the lease expires.

        The lease holds a reference of its own, so the caller may close its buffer at once. It ends when the bytes were
        fetched, by ``release``, by ``release_remote``, or by time.
        """
        ...

    async def fetch(self, handles: Sequence[TensorHandle]) -> list[Buffer]:
        """Copies the bytes of all handles into buffers of this process, in one operation for each owner.

        Everything in a handle is checked before it is used. Raises Unavailable (code ``transfer_failed``) if an owner
        is gone, a lease ended or the time limit passed, and what ``allocate`` raises; then no buffer is left behind.
        The owner may learn of a fetch one turn of the event loop later. After a cancel, memory that a transfer may
        still write to is kept until the transfer has ended.
        """
        ...

    def release(self, handle: TensorHandle) -> None:
        """Ends a lease of this process early. Leases that have ended, unknown leases and others' handles are
        ignored."""
        ...

    def release_remote(self, handles: Sequence[TensorHandle]) -> None:
        """Ends leases of other processes early, because nobody will fetch them.

        The owners are told in the background. Nothing is raised: a lease whose owner cannot be told expires.
        """
        ...

    def on_pressure(self, reclaim: Callable[[int], None]) -> None:
        """Registers ``reclaim(missing_bytes)``, which closes cached buffers, least useful first.

        It is called before any caller has to wait for room.
        """
        ...

    def stats(self) -> TransferStats:
        """Returns the counters as they are now."""
        ...
