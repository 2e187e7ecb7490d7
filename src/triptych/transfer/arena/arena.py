"""Hands out buffers of a bounded arena, and queues callers that wait for room."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from triptych.aio.tasks import TaskSet
from triptych.contracts.errors import PayloadTooLarge, Unavailable
from triptych.transfer.arena.buffer import ArenaBuffer, Block, TensorSpec
from triptych.transfer.arena.extents import FreeExtents
from triptych.transfer.arena.memory import PAGE_BYTES, Memory

ALIGN_BYTES = 64
"""Every buffer starts at a multiple of this (a cache line), and its size is rounded up to one."""
GROW_PAUSE_S = 1.0
"""The time until the arena tries to grow again, after the machine had no memory."""

log = logging.getLogger("triptych.transfer")


class Arena:
    """Hands out parts of ``memory``, at most ``capacity_bytes`` of it together, and takes the memory slab by slab.

    For one event loop. Callers that find no room wait in order of arrival. They are woken when something is given back,
    never by a timer. Reclaimers (see ``Transfer.on_pressure``) are called before anybody waits.
    """

    def __init__(
        self,
        memory: Memory,
        capacity_bytes: int,
        *,
        slab_bytes: int,
        queue_limit: int,
        wait_s: float,
        on_backed: Callable[[int, int], None] = lambda start, stop: None,
        tidy: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_backed(start, stop)`` is called with every new slab before a buffer lies in it; it may raise OSError.

        ``tidy()`` is called before the arena grows, and frees buffers that nobody needs any more.
        """
        self.memory = memory
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = 0
        self.used_bytes = 0
        self.buffers = 0
        self.reclaimers: list[Callable[[int], None]] = []
        self._slab_bytes = round_up(slab_bytes, PAGE_BYTES)
        self._queue_limit = queue_limit
        self._wait_s = wait_s
        self._on_backed = on_backed
        self._tidy = tidy
        self._extents = FreeExtents()
        self._waiters: deque[_Waiter] = deque()
        self._tasks = TaskSet()
        self._serving = False
        self._growing = False
        self._grow_error: OSError | None = None
        """The reason why the arena could not grow the last time; None if it could."""
        self._grow_again_at = 0.0
        self.closed = False

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    async def allocate(self, specs: Sequence[TensorSpec]) -> list[ArenaBuffer]:
        """Returns buffers of these specs, all or none. Waits and raises as ``Transfer.allocate`` does."""
        if self.closed:
            raise _closed()
        sizes = [max(ALIGN_BYTES, round_up(spec.size_bytes, ALIGN_BYTES)) for spec in specs]
        if sum(sizes) > self.capacity_bytes:
            raise PayloadTooLarge(
                f"{sum(sizes):,} bytes of tensors are more than the arena's {self.capacity_bytes:,} (--arena-bytes)"
            )
        blocks = None if self._waiters else self._take(sizes)
        if blocks is None:
            blocks = await self._wait(sizes)
        return [ArenaBuffer(self, block, spec) for block, spec in zip(blocks, specs, strict=True)]

    async def _wait(self, sizes: list[int]) -> list[Block]:
        if len(self._waiters) >= self._queue_limit:
            raise Unavailable(f"{self._queue_limit} callers already wait for room for tensors", code="arena_full")
        waiter = _Waiter(sizes)
        self._waiters.append(waiter)
        self.serve()
        try:
            async with asyncio.timeout(self._wait_s):
                return await waiter.blocks
        except BaseException as error:
            self._abandon(waiter)
            if isinstance(error, TimeoutError):
                error = self._no_room(f"no room for tensors came free within {self._wait_s:g} s")
            raise error from None

    def _abandon(self, waiter: _Waiter) -> None:
        """Removes ``waiter`` from the queue. Blocks that it was given at the same moment are given back."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self.serve()
        elif waiter.blocks.done() and not waiter.blocks.cancelled() and waiter.blocks.exception() is None:
            for block in waiter.blocks.result():
                self.free(block)

    def serve(self) -> None:
        """Gives room to waiting callers, in order, up to the first for whom there is none."""
        if self._serving:  # called from here: a reclaimer closed a buffer
            return
        self._serving = True
        try:
            while self._waiters and not self.closed:
                if not self._serve_first(self._waiters[0]):
                    break
        finally:
            self._serving = False

    def _serve_first(self, waiter: _Waiter) -> bool:
        """Serves the first of the queue. Returns whether it has left the queue."""
        if waiter.blocks.done():  # cancelled, and about to leave
            self._waiters.popleft()
            return True
        blocks = self._take(waiter.sizes)
        if blocks is None:
            self._tidy()
            blocks = self._take(waiter.sizes)
        if blocks is None:
            if self._can_grow():
                self._grow(waiter)
                return False
            blocks = self._reclaim(waiter.sizes)
        if blocks is None:
            return False
        self._waiters.popleft()
        waiter.blocks.set_result(blocks)
        return True

    def _take(self, sizes: Sequence[int]) -> list[Block] | None:
        blocks: list[Block] = []
        for size in sizes:
            start = self._extents.take(size)
            if start is None:
                for block in blocks:
                    self._extents.give(block.start, block.size)
                return None
            blocks.append(Block(start, size))
        self.used_bytes += sum(sizes)
        self.buffers += len(blocks)
        return blocks

    def _reclaim(self, sizes: Sequence[int]) -> list[Block] | None:
        """Calls the reclaimers, again and again as long as that frees something."""
        before = -1
        while self.used_bytes != before:
            before = self.used_bytes
            for reclaim in self.reclaimers:
                missing = sum(sizes) - self._extents.free_bytes
                _call_reclaimer(reclaim, missing if missing > 0 else sum(sizes))
                if (blocks := self._take(sizes)) is not None:
                    return blocks
        return None

    def _can_grow(self) -> bool:
        if self.reserved_bytes >= self.capacity_bytes:
            return False
        return self._grow_error is None or asyncio.get_running_loop().time() >= self._grow_again_at

    def _grow(self, waiter: _Waiter) -> None:
        """Takes at least one more slab in a thread, and serves the queue after that."""
        if self._growing:
            return
        self._growing = True
        start = self.reserved_bytes
        missing = round_up(sum(waiter.sizes) - self._extents.tail_bytes(start), PAGE_BYTES)
        stop = min(self.capacity_bytes, start + max(self._slab_bytes, missing))
        self._tasks.spawn(self._take_slab(start, stop), "grow the arena")

    async def _take_slab(self, start: int, stop: int) -> None:
        try:
            await asyncio.to_thread(self.memory.back, start, stop)
            self._on_backed(start, stop)
        except OSError as error:
            self._cannot_grow(error)
        else:
            self._grow_error = None
            self.reserved_bytes = stop
            self._extents.give(start, stop - start)
        finally:
            self._growing = False
        self.serve()

    def _cannot_grow(self, error: OSError) -> None:
        """Goes on with the memory there is, and tries again later. Without any, the first waiter is refused."""
        log.warning("the arena cannot grow beyond %d bytes: %s", self.reserved_bytes, error.strerror or error)
        self._grow_error = error
        self._grow_again_at = asyncio.get_running_loop().time() + GROW_PAUSE_S
        if not self.reserved_bytes and self._waiters:
            self._waiters.popleft().refuse(self._no_room("no room for tensors"))

    def _no_room(self, what: str) -> Unavailable:
        error = self._grow_error
        why = "" if error is None else f" (the machine has no more memory for them: {error.strerror or error})"
        return Unavailable(what + why, code="arena_full")

    def free(self, block: Block) -> None:
        """Takes back ``block``, whose last buffer was closed."""
        if self.closed:
            return
        self._extents.give(block.start, block.size)
        self.used_bytes -= block.size
        self.buffers -= 1
        self.serve()

    def released(self) -> None:
        """Serves the queue after one of several holders closed a buffer: the last holder may be a cache that can close
        it."""
        if self._waiters:
            self.serve()

    async def close(self) -> None:
        """Gives everything back. Waiting callers get Unavailable. May be called twice."""
        self.closed = True
        await self._tasks.close()
        while self._waiters:
            self._waiters.popleft().refuse(_closed())
        self.used_bytes = self.buffers = 0
        self.memory.close()


class _Waiter:
    """One caller in the queue."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.blocks: asyncio.Future[list[Block]] = asyncio.get_running_loop().create_future()

    def refuse(self, error: Unavailable) -> None:
        if not self.blocks.done():
            self.blocks.set_exception(error)


def _call_reclaimer(reclaim: Callable[[int], None], missing_bytes: int) -> None:
    try:
        reclaim(missing_bytes)
    except Exception:  # an error of a cache must not fail the waiter
        log.exception("a reclaimer of the arena failed")


def _closed() -> Unavailable:
    return Unavailable("the worker is shutting down its transfers", code="arena_full")


def round_up(size: int, step: int) -> int:
    """Returns the smallest multiple of ``step`` that is not below ``size``."""
    return -(-size // step) * step
