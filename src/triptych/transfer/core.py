"""What all back ends have in common: arena, leases, the one timer, and the frame of a fetch.

A back end says where an exported buffer lies (``_locate``) and how bytes come from another process (``_move``).
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
from triptych.transfer.arena.buffer import ArenaBuffer, Form, form
from triptych.transfer.arena.memory import PAGE_BYTES, Memory
from triptych.transfer.base import Buffer, TransferStats
from triptych.transfer.checks import LEASE_ENDED, checked_form, lost, malformed
from triptych.transfer.leases import Lease, Leases
from triptych.transfer.table import LeaseTable

CHUNK_BYTES = 4 << 20
"""Most bytes that are copied in one turn of the event loop: a few tenths of a millisecond."""
_TICK_MIN_S = 0.002
_TICK_MAX_S = 0.1
_TICK_WAITING_S = 0.01
_COLLECT_AT_ONCE = 32
"""So many open leases are looked at before every allocation."""
_TICK_PER_LEASE_S = 0.00002
"""A look at a lease takes less than a fiftieth of this."""


class Move(NamedTuple):
    """One tensor to fetch, and where to."""

    handle: TensorHandle
    buffer: ArenaBuffer


class BaseTransfer(ABC):
    """A ``transfer.base.Transfer``, but for what a back end adds."""

    backend: str

    def __init__(self, config: TransferConfig, id: str) -> None:
        self._config = config
        self._id = id
        self._arena: Arena | None = None
        self._leases: Leases | None = None
        self._reclaimers: list[Callable[[int], None]] = []
        self._tasks = TaskSet()
        self._stir = asyncio.Event()
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

    # What a back end adds.

    @abstractmethod
    def _locate(self, lease: Lease) -> bytes:
        """``location`` of the lease's handle."""

    @abstractmethod
    async def _move(self, owner: str, moves: Sequence[Move]) -> None:
        """Bring the bytes of another owner's leases and tell it.

        Raises a TriptychError when any cannot come, and TimeoutError after ``transfer_timeout_s``.
        """

    @abstractmethod
    async def _wave_off(self, handle: TensorHandle) -> None:
        """Tell another owner that the lease is done with. Raises TriptychError or TimeoutError where it cannot."""

    @abstractmethod
    def _token(self, handle: TensorHandle) -> int:
        """The lease's token in ``handle.location``. Raises BadRequest for a malformed one."""

    def _tick(self) -> bool:
        """Called by the timer, now and then; returns whether it has to be called again."""
        return False

    # Life.

    def _begin(
        self,
        memory: Memory,
        table: LeaseTable,
        *,
        base: int = 0,
        on_backed: Callable[[int, int], None] = lambda start, stop: None,
    ) -> None:
        """``memory`` and ``table`` exist: run. Called once, by ``start``; see ``Leases`` and ``Arena``."""
        config = self._config
        self._arena = Arena(
            memory,
            self.capacity_bytes,
            slab_bytes=config.slab_bytes,
            queue_limit=config.arena_queue,
            wait_s=config.arena_wait_s,
            on_backed=on_backed,
            tidy=self._pressed,
        )
        self._arena.reclaimers = self._reclaimers
        self._leases = Leases(table, config.lease_s, base=base)
        self._tasks.spawn(self._tend(), f"tend transfer {self._id}")

    @property
    def capacity_bytes(self) -> int:
        return max(PAGE_BYTES, self._config.arena_bytes // PAGE_BYTES * PAGE_BYTES)

    async def close(self) -> None:
        await self._tasks.close()
        if self._leases is not None:
            self._leases.close()
        if self._arena is not None:
            await self._arena.close()

    async def _tend(self) -> None:
        """The one timer: at rest while nothing is open, often after an export, ever less often while it waits."""
        pause_s = _TICK_MIN_S
        while True:
            self.leases.collect()
            busy = self._tick()
            if self.arena.waiting:
                self.arena.serve()
                pause_s = min(pause_s, _TICK_WAITING_S)
            elif not busy and not self.leases:
                self._stir.clear()
                await self._stir.wait()
            if self._stir.is_set():
                self._stir.clear()
                pause_s = _TICK_MIN_S
            await asyncio.sleep(min(_TICK_MAX_S, max(pause_s, len(self.leases) * _TICK_PER_LEASE_S)))
            pause_s = min(pause_s * 1.5, _TICK_MAX_S)

    def _pressed(self) -> None:
        """Leases that have ended make room, and the timer looks for more of them."""
        self.leases.collect()
        self._stir.set()

    # The port.

    async def allocate(self, shapes: Sequence[tuple[int, ...]], dtype: str) -> list[Buffer]:
        """Raises ValueError for an unknown ``dtype`` or a negative side, besides what the port says."""
        return list(await self._room([form(tuple(shape), dtype) for shape in shapes]))

    async def _room(self, forms: Sequence[Form]) -> list[ArenaBuffer]:
        if len(self.leases) <= _COLLECT_AT_ONCE:
            self.leases.collect()  # what was just fetched is still in the processor's cache: use it again
        return await self.arena.allocate(forms)

    def export(self, buffer: Buffer) -> TensorHandle:
        if not isinstance(buffer, ArenaBuffer) or buffer.arena is not self.arena:
            raise ValueError("only buffers of this transfer's own arena can be exported")
        if self.arena.closed:
            raise lost("the worker is shutting down its transfers")
        lease = self.leases.open(buffer)
        self._stir.set()
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
        forms = [checked_form(handle, self.backend) for handle in handles]
        if len(handles) > 1 and len({(handle.owner, handle.lease) for handle in handles}) < len(handles):
            raise malformed("one tensor is asked for twice")
        buffers = await self._room(forms)
        try:
            await self._fetch_all([Move(*pair) for pair in zip(handles, buffers, strict=True)])
        except BaseException as error:
            for buffer in buffers:
                buffer.close()
            if isinstance(error, TimeoutError):
                error = lost(f"it took more than {self._config.transfer_timeout_s:g} s")
            raise error from None
        return buffers

    async def _fetch_all(self, moves: Sequence[Move]) -> None:
        """From all owners at the same time."""
        if len(moves) == 1:
            await self._fetch_from(moves[0].handle.owner, moves)
            return
        owners: dict[str, list[Move]] = {}
        for move in moves:
            owners.setdefault(move.handle.owner, []).append(move)
        if len(owners) == 1:
            await self._fetch_from(*next(iter(owners.items())))
            return
        try:
            async with asyncio.TaskGroup() as group:
                for owner, theirs in owners.items():
                    group.create_task(self._fetch_from(owner, theirs), name="fetch tensors")
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _fetch_from(self, owner: str, moves: Sequence[Move]) -> None:
        if owner == self._id:
            await copy_leased(self, moves)
        else:
            await self._move(owner, moves)

    def release(self, handle: TensorHandle) -> None:
        if handle.owner == self._id and self._leases is not None:
            self._leases.end(handle.lease)

    def release_remote(self, handles: Sequence[TensorHandle]) -> None:
        if handles:
            self._tasks.spawn(self._decline(handles), "decline tensors")

    async def _decline(self, handles: Sequence[TensorHandle]) -> None:
        for handle in handles:
            with suppress(TriptychError, TimeoutError):
                if handle.owner != self._id:
                    await self._wave_off(handle)
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


async def copy_leased(owner: BaseTransfer, moves: Sequence[Move]) -> None:
    """Fetch from a transfer in this process. Raises Unavailable when a lease ended."""
    for handle, buffer in moves:
        token = owner._token(handle)
        lease = owner.leases.find(handle.lease, token)
        if lease is None:
            raise lost(LEASE_ENDED)
        if lease.buffer.size_bytes != buffer.size_bytes:
            raise malformed("its shape is not that of the tensor")
        await copy(lease.buffer.data, buffer.data)
        if owner.leases.find(handle.lease, token) is None:
            raise lost(LEASE_ENDED)
    for handle, _ in moves:
        owner.leases.end(handle.lease)


async def copy(source: memoryview, target: memoryview) -> None:
    """Between two ranges of one size, giving way to others after every ``CHUNK_BYTES``."""
    for start in range(0, len(source), CHUNK_BYTES):
        if start:
            await asyncio.sleep(0)
        target[start : start + CHUNK_BYTES] = source[start : start + CHUNK_BYTES]
