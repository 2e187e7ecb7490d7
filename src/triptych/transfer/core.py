"""Implements what all back ends have in common: arena, leases, the one timer, and the frame of a fetch.

A back end says where an exported buffer lies (``_locate``) and fetches bytes from other processes (``_fetch_remote``).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from triptych.aio.tasks import TaskSet
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import TriptychError
from triptych.contracts.tensor import TensorHandle
from triptych.transfer.arena.arena import Arena
from triptych.transfer.arena.buffer import ArenaBuffer, TensorSpec, tensor_spec
from triptych.transfer.arena.memory import PAGE_BYTES, Memory
from triptych.transfer.base import Buffer, TransferStats
from triptych.transfer.checks import LEASE_ENDED, checked_spec, lost, malformed
from triptych.transfer.leases import Lease, Leases
from triptych.transfer.table import LeaseTable

CHUNK_BYTES = 4 << 20
"""The limit on bytes copied in one turn of the event loop, which takes a few tenths of a millisecond."""
_TICK_MIN_S = 0.002
_TICK_MAX_S = 0.1
_TICK_WAITING_S = 0.01
"""The longest pause of the timer while callers wait for room."""
_COLLECT_AT_ONCE = 32
"""Up to this number of open leases, all are checked before every allocation."""
_TICK_PER_LEASE_S = 0.00002
"""The pause of the timer for each open lease. To check one takes less than a fiftieth of it."""


class TensorFetch(NamedTuple):
    """One tensor to fetch, and the buffer to fetch it into."""

    handle: TensorHandle
    buffer: ArenaBuffer


class BaseTransfer(ABC):
    """Implements ``transfer.base.Transfer``, except what a back end adds."""

    backend: str

    def __init__(self, config: TransferConfig, id: str) -> None:
        self._config = config
        self._id = id
        self._arena: Arena | None = None
        self._leases: Leases | None = None
        self._reclaimers: list[Callable[[int], None]] = []
        self._tasks = TaskSet()
        self._wake_timer = asyncio.Event()
        self._fetched = self._fetched_bytes = self._failed = 0

    @property
    def id(self) -> str:
        return self._id

    @property
    def arena(self) -> Arena:
        """Raises RuntimeError before ``start``."""
        if self._arena is None:
            raise RuntimeError("the transfer is not started")
        return self._arena

    @property
    def leases(self) -> Leases:
        """Raises RuntimeError before ``start``."""
        if self._leases is None:
            raise RuntimeError("the transfer is not started")
        return self._leases

    # The methods that a back end adds.

    @abstractmethod
    def _locate(self, lease: Lease) -> bytes:
        """Returns the ``location`` of the lease's handle."""

    @abstractmethod
    async def _fetch_remote(self, owner: str, fetches: Sequence[TensorFetch]) -> None:
        """Fetches the bytes of another owner's leases, and tells the owner.

        Raises a TriptychError if any of them cannot be fetched, and TimeoutError after ``transfer_timeout_s``.
        """

    @abstractmethod
    async def _release_at_owner(self, handle: TensorHandle) -> None:
        """Tells another owner that nobody needs the lease. Raises TriptychError or TimeoutError if that fails."""

    @abstractmethod
    def _token(self, handle: TensorHandle) -> int:
        """Returns the lease's token from ``handle.location``. Raises BadRequest for a malformed location."""

    def _tick(self) -> bool:
        """Does work of the back end that is due. The timer calls it; returns whether it has to be called again."""
        return False

    # Start and end.

    def _begin(
        self,
        memory: Memory,
        table: LeaseTable,
        *,
        base: int = 0,
        on_backed: Callable[[int, int], None] = lambda start, stop: None,
    ) -> None:
        """Starts the arena, the leases and the timer. A back end's ``start`` calls it once.

        ``Leases`` and ``Arena`` explain the parameters.
        """
        config = self._config
        self._arena = Arena(
            memory,
            self.capacity_bytes,
            slab_bytes=config.slab_bytes,
            queue_limit=config.arena_queue,
            wait_s=config.arena_wait_s,
            on_backed=on_backed,
            tidy=self._make_room,
        )
        self._arena.reclaimers = self._reclaimers
        self._leases = Leases(table, config.lease_s, base=base)
        self._tasks.spawn(self._run_timer(), f"timer of transfer {self._id}")

    @property
    def capacity_bytes(self) -> int:
        """The configured size of the arena in whole pages."""
        return max(PAGE_BYTES, self._config.arena_bytes // PAGE_BYTES * PAGE_BYTES)

    async def close(self) -> None:
        await self._tasks.close()
        if self._leases is not None:
            self._leases.close()
        if self._arena is not None:
            await self._arena.close()

    async def _run_timer(self) -> None:
        """Runs the one timer: often after an export, then less and less often, and not at all while no lease is
        open."""
        pause_s = _TICK_MIN_S
        while True:
            self.leases.collect()
            busy = self._tick()
            if self.arena.waiting:
                self.arena.serve()
                pause_s = min(pause_s, _TICK_WAITING_S)
            elif not busy and not self.leases:
                self._wake_timer.clear()
                await self._wake_timer.wait()
            if self._wake_timer.is_set():
                self._wake_timer.clear()
                pause_s = _TICK_MIN_S
            await asyncio.sleep(min(_TICK_MAX_S, max(pause_s, len(self.leases) * _TICK_PER_LEASE_S)))
            pause_s = min(pause_s * 1.5, _TICK_MAX_S)

    def _make_room(self) -> None:
        """Makes room by ended leases, and has the timer look for more of them soon."""
        self.leases.collect()
        self._wake_timer.set()

    # The port.

    async def allocate(self, shapes: Sequence[tuple[int, ...]], dtype: str) -> list[Buffer]:
        """Allocates as the port says. It also raises ValueError for an unknown ``dtype`` or a negative side."""
        return list(await self._take([tensor_spec(tuple(shape), dtype) for shape in shapes]))

    async def _take(self, specs: Sequence[TensorSpec]) -> list[ArenaBuffer]:
        if len(self.leases) <= _COLLECT_AT_ONCE:
            self.leases.collect()  # memory that was just fetched is still in the processor's cache
        return await self.arena.allocate(specs)

    def export(self, buffer: Buffer) -> TensorHandle:
        if not isinstance(buffer, ArenaBuffer) or buffer.arena is not self.arena:
            raise ValueError("only buffers of this transfer's own arena can be exported")
        if self.arena.closed:
            raise lost("the worker is shutting down its transfers")
        lease = self.leases.open(buffer)
        self._wake_timer.set()
        return TensorHandle(
            backend=self.backend,
            owner=self._id,
            lease=lease.number,
            shape=buffer.shape,
            dtype=buffer.dtype,
            expires_unix_s=lease.expires_unix_s,
            location=self._locate(lease),
        )

    async def fetch(self, handles: Sequence[TensorHandle]) -> list[Buffer]:
        try:
            buffers = await self._fetch(handles)
        except TriptychError:
            self._failed += 1
            raise
        self._fetched += len(buffers)
        self._fetched_bytes += sum(buffer.size_bytes for buffer in buffers)
        return list(buffers)

    async def _fetch(self, handles: Sequence[TensorHandle]) -> list[ArenaBuffer]:
        specs = [checked_spec(handle, self.backend) for handle in handles]
        if len(handles) > 1 and len({(handle.owner, handle.lease) for handle in handles}) < len(handles):
            raise malformed("one tensor is asked for twice")
        buffers = await self._take(specs)
        try:
            await self._fetch_all([TensorFetch(*pair) for pair in zip(handles, buffers, strict=True)])
        except BaseException as error:
            for buffer in buffers:
                buffer.close()
            if isinstance(error, TimeoutError):
                error = lost(f"it took more than {self._config.transfer_timeout_s:g} s")
            raise error from None
        return buffers

    async def _fetch_all(self, fetches: Sequence[TensorFetch]) -> None:
        """Fetches from all owners at the same time."""
        if len(fetches) == 1:
            await self._fetch_from(fetches[0].handle.owner, fetches)
            return
        owners: dict[str, list[TensorFetch]] = {}
        for fetch in fetches:
            owners.setdefault(fetch.handle.owner, []).append(fetch)
        if len(owners) == 1:
            await self._fetch_from(*next(iter(owners.items())))
            return
        try:
            async with asyncio.TaskGroup() as group:
                for owner, theirs in owners.items():
                    group.create_task(self._fetch_from(owner, theirs), name="fetch tensors")
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _fetch_from(self, owner: str, fetches: Sequence[TensorFetch]) -> None:
        if owner == self._id:
            await copy_leased(self, fetches)
        else:
            await self._fetch_remote(owner, fetches)

    def release(self, handle: TensorHandle) -> None:
        if handle.owner == self._id and self._leases is not None:
            self._leases.end(handle.lease)

    def release_remote(self, handles: Sequence[TensorHandle]) -> None:
        if handles:
            self._tasks.spawn(self._release_all(handles), "decline tensors")

    async def _release_all(self, handles: Sequence[TensorHandle]) -> None:
        for handle in handles:
            with suppress(TriptychError, TimeoutError):
                if handle.owner != self._id:
                    await self._release_at_owner(handle)
                elif self.leases.find(handle.lease, self._token(handle)) is not None:
                    self.leases.end(handle.lease)

    def on_pressure(self, reclaim: Callable[[int], None]) -> None:
        self._reclaimers.append(reclaim)

    def stats(self) -> TransferStats:
        if self._arena is None or self._leases is None:
            return TransferStats()
        arena, leases = self._arena, self._leases
        return TransferStats(
            capacity_bytes=arena.capacity_bytes,
            reserved_bytes=arena.reserved_bytes,
            used_bytes=arena.used_bytes,
            buffers=arena.buffers,
            leases=len(leases),
            exported=leases.exported,
            fetched=self._fetched,
            fetched_bytes=self._fetched_bytes,
            failed=self._failed,
            expired=leases.expired,
            waiting=arena.waiting,
        )


async def copy_leased(owner: BaseTransfer, fetches: Sequence[TensorFetch]) -> None:
    """Fetches from a transfer in this process. Raises Unavailable if a lease has ended."""
    for handle, buffer in fetches:
        token = owner._token(handle)
        lease = owner.leases.find(handle.lease, token)
        if lease is None:
            raise lost(LEASE_ENDED)
        if lease.buffer.size_bytes != buffer.size_bytes:
            raise malformed("its shape is not that of the tensor")
        await copy(lease.buffer.data, buffer.data)
        if owner.leases.find(handle.lease, token) is None:
            raise lost(LEASE_ENDED)
    for handle, _ in fetches:
        owner.leases.end(handle.lease)


async def copy(source: memoryview, target: memoryview) -> None:
    """Copies between two ranges of equal size. Other tasks run after every ``CHUNK_BYTES``."""
    for start in range(0, len(source), CHUNK_BYTES):
        if start:
            await asyncio.sleep(0)
        target[start : start + CHUNK_BYTES] = source[start : start + CHUNK_BYTES]
