"""The transfer port: tensors in a bounded arena, handed from worker to worker by handle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from triptych.contracts.tensor import TensorHandle

TRANSFER_FAILED = "transfer_failed"
"""Error code of a fetch that failed for a reason that lies with the owner or on the way."""


class Buffer(Protocol):
    """One tensor's bytes in a process's arena. Whoever holds it owns one reference; the last ``close`` frees it.

    The bytes are shared with everybody who holds the buffer: written once, by who allocated it, and never
    again. ``data`` is valid until the holder's own ``close``.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def data(self) -> memoryview:
        """The bytes, C-contiguous, format ``B``; writable."""
        ...

    def share(self) -> Buffer:
        """One more reference to the same bytes, to be closed by itself."""
        ...

    def close(self) -> None:
        """Give this reference back. May be called twice."""
        ...


class TransferStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot, for metrics and leak checks."""

    capacity_bytes: int = 0
    """Most that the arena may ever hold."""
    reserved_bytes: int = 0
    """Memory taken from the machine so far (and registered with the network)."""
    used_bytes: int = 0
    """In buffers alive, rounding included."""
    buffers: int = 0
    leases: int = 0
    """Exports neither fetched, released nor expired."""
    exported: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    failed: int = 0
    """Fetches that ended in an error."""
    expired: int = 0
    """Leases that nobody fetched in time."""
    waiting: int = 0
    """Callers waiting for room."""


class Transfer(Protocol):
    """One per process. For one event loop; no method blocks it.

    Its arena is one bound on all buffers of the process, those made here and those fetched from others. Memory
    is taken (and registered) in slabs as it is needed and kept for the life of the process.
    """

    @property
    def id(self) -> str:
        """Unique to this life of this process; ``owner`` of its handles."""
        ...

    async def start(self) -> None:
        """Raises ConfigError with what to install or set when the back end cannot work here."""
        ...

    async def close(self) -> None:
        """Free everything, leases included. Who waits for room gets Unavailable. May be called twice."""
        ...

    async def allocate(self, shapes: Sequence[tuple[int, ...]], dtype: str) -> list[Buffer]:
        """Uninitialised buffers, all or none. Waits for room where there is none, after asking ``reclaim``.

        Raises Unavailable when the queue of those who wait is full or the wait passes its limit, and
        PayloadTooLarge for more than the arena could ever hold. Cancelling while it waits takes nothing.
        """
        ...

    def export(self, buffer: Buffer) -> TensorHandle:
        """Let another process (or this one) fetch the buffer, once, until the lease expires.

        The lease holds a reference of its own: the caller may close its buffer at once. It ends when the
        bytes were fetched, by ``release``, or by time.
        """
        ...

    async def fetch(self, handles: Sequence[TensorHandle]) -> list[Buffer]:
        """The bytes of all handles, in buffers of this process, moved in one operation for each owner.

        Everything in a handle is checked before it is used. Raises Unavailable (code ``transfer_failed``) when
        an owner is gone, a lease ended or the time limit passed, and what ``allocate`` raises; then no buffer
        is left behind. The owner may hear of a fetch a turn of the loop later. After a cancel, memory that a
        transfer may still write to is kept until it ended.
        """
        ...

    def release(self, handle: TensorHandle) -> None:
        """End a lease of this process's own early. Ended or unknown ones, and others' handles: nothing happens."""
        ...

    def release_remote(self, handles: Sequence[TensorHandle]) -> None:
        """Tell the owners, in a moment, that nobody will fetch these: the bytes are here by another way.

        Nobody waits for it and nothing is raised; a lease whose owner cannot be told runs out.
        """
        ...

    def on_pressure(self, reclaim: Callable[[int], None]) -> None:
        """Ask ``reclaim(missing_bytes)`` to close cached buffers, least useful first, before anybody waits."""
        ...

    def stats(self) -> TransferStats: ...
