"""Transfers between processes and hosts by NIXL (UCX): receivers READ from the owner's registered memory."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import Unavailable
from triptych.contracts.tensor import TensorHandle
from triptych.transfer.arena.extents import FreeExtents
from triptych.transfer.arena.memory import AnonymousMemory
from triptych.transfer.checks import LEASE_ENDED, lost
from triptych.transfer.core import CHUNK_BYTES, BaseTransfer, Move
from triptych.transfer.leases import Lease
from triptych.transfer.nixl import ucx
from triptych.transfer.nixl.agent import NixlAgent, NixlError
from triptych.transfer.nixl.flight import Flight, Lingering
from triptych.transfer.nixl.location import Location, Slab, checked, metadata_of, read
from triptych.transfer.nixl.remotes import Remote, Remotes
from triptych.transfer.nixl.spans import Piece, Span, batched, cut
from triptych.transfer.shared_table import SharedTable, open_shared_table
from triptych.transfer.table import DONE_OFFSET, ENTRY_BYTES, TABLE_BYTES, Entry, LeaseTable

log = logging.getLogger("triptych.transfer")

BATCH_PIECES = 128
"""Most pieces of one NIXL transfer."""
SCRATCH_ENTRIES = 8192
"""Most tensors whose lease entries fetches under way read at a time."""


class NixlTransfer(BaseTransfer):
    """Its slabs are registered once. The owner's process takes no part in a fetch once it is connected.

    A receiver reads the bytes, then the lease's entry (see ``table``), which tells whether they were still those
    that were exported, and last writes into the entry that it is done. On the owner's machine it has the table mapped;
    elsewhere it reads and writes the entry by NIXL too.
    """

    backend = "nixl"

    def __init__(self, config: TransferConfig) -> None:
        super().__init__(config, f"nixl-{secrets.token_hex(12)}")
        self._agent: NixlAgent | None = None
        self._registered: list[Any] = []
        self._slabs: list[Slab] = []
        self._slab_ends: list[int] = []
        self._lingering = Lingering(config.transfer_timeout_s)
        self._pid = os.getpid()

    async def start(self) -> None:
        agent = self._agent = await asyncio.to_thread(NixlAgent, self.id, self._config.transfer_devices)
        self._tell_of_slow_copies()
        self._remotes = Remotes(agent)
        self._memory = AnonymousMemory(self.capacity_bytes)
        self._table = SharedTable(self.id)
        self._table_metadata = self._register(Span(self._table.address, TABLE_BYTES), connection=True)
        self._scratch = AnonymousMemory(SCRATCH_ENTRIES * ENTRY_BYTES)
        self._scratch_free = FreeExtents()
        self._scratch_free.give(0, SCRATCH_ENTRIES * ENTRY_BYTES)
        self._register(Span(self._scratch.address, SCRATCH_ENTRIES * ENTRY_BYTES))
        self._begin(self._memory, self._table.table, base=self._memory.address, on_backed=self._backed)

    def _tell_of_slow_copies(self) -> None:
        if self._config.transfer_devices == ucx.NO_DEVICE and (why := ucx.why_no_direct_copy()):
            log.warning("tensors go through shared memory, several times as slow as a direct copy: %s", why)

    async def close(self) -> None:
        """Transfers under way are aborted before the memory that they write to can go."""
        agent, self._agent = self._agent, None
        await super().close()
        if agent is None:
            return
        self._lingering.close()
        self._table.close()
        for registered in self._registered:
            with suppress(NixlError):
                agent.deregister(registered)
        agent.close()

    def _register(self, span: Span, *, connection: bool = False) -> bytes:
        """Raises NixlError."""
        registered = self.agent.register(span)
        self._registered.append(registered)
        return self.agent.metadata(registered, connection=connection)

    def _backed(self, start: int, stop: int) -> None:
        """The arena took a slab. Raises OSError."""
        span = Span(self._memory.address + start, stop - start)
        try:
            self._slabs.append(Slab(*span, self._register(span)))
        except NixlError as error:
            raise OSError(f"NIXL cannot register it ({error})") from None
        self._slab_ends.append(span.address + span.size)

    @property
    def agent(self) -> NixlAgent:
        """Raises Unavailable once it is closed."""
        if self._agent is None:
            raise lost("the worker is shutting down its transfers")
        return self._agent

    def _locate(self, lease: Lease) -> bytes:
        address = self._memory.address + lease.buffer.block.start
        slabs = self._slabs_of(address, lease.buffer.size_bytes)
        own = self._table
        location = Location(
            address, own.address, lease.slot, self._pid, own.fd, lease.token, self._table_metadata, slabs
        )
        return msgspec.msgpack.encode(location)

    def _slabs_of(self, address: int, size: int) -> list[Slab]:
        """Those that the range lies in, in order; none of an empty range."""
        first = bisect_right(self._slab_ends, address)
        last = bisect_left(self._slab_ends, address + size)
        return self._slabs[first : last + 1] if size else []

    def _token(self, handle: TensorHandle) -> int:
        return read(handle.location).token

    async def _move(self, owner: str, moves: Sequence[Move]) -> None:
        locations = [checked(move.handle.location, move.buffer.size_bytes) for move in moves]
        remote = self._remotes.enter(owner)
        table = _near(remote, locations[0])
        try:
            scratch = self._take_scratch(len(moves)) if table is None else None
            entries = await self._read(remote, moves, locations, table, scratch)
        except BaseException:
            self._remotes.leave(remote)
            raise
        if scratch is None:
            self._remotes.leave(remote)
            return
        # Later: the bytes are here, and whoever waits for them need not wait for the owner to hear of it.
        asyncio.get_running_loop().call_soon(self._tell, remote, entries, scratch)

    async def _read(
        self,
        remote: Remote,
        moves: Sequence[Move],
        locations: Sequence[Location],
        table: LeaseTable | None,
        scratch: Span | None,
    ) -> list[Piece]:
        """Read the bytes and then look at their leases' entries: in ``table``, and mark them done, or in ``scratch``.

        A failure gives ``scratch`` back. Returns what was read into it.
        """
        limit_s = self._config.transfer_timeout_s
        flight = Flight(self.agent, remote.name, asyncio.get_running_loop().time() + limit_s)
        try:
            await self._remotes.load(remote, metadata_of(locations), limit_s)
            await flight.read(self._plan(moves, locations))
            if table is not None:
                _check_leases([table.entry(location.slot) for location in locations], moves, locations)
                for location in locations:
                    table.mark_done(location.slot, location.token)
                return []
            assert scratch is not None
            entries = _entries(locations, self._scratch, scratch)
            await flight.read(batched(entries, CHUNK_BYTES, BATCH_PIECES))
            words = self._scratch.view[scratch.address : scratch.address + scratch.size]
            _check_leases(Entry.read_all(words), moves, locations)
            return entries
        except BaseException as error:
            give_back = [move.buffer.share().close for move in moves]
            self._let_go(flight, give_back if scratch is None else [*give_back, self._giver(scratch)])
            if isinstance(error, NixlError):
                remote.failed = not error.refused or remote.users == 1
                raise self._out_of_reach(error) from None
            remote.failed = remote.failed or isinstance(error, TimeoutError)
            raise

    def _tell(self, remote: Remote, entries: Sequence[Piece], scratch: Span) -> None:
        """Tell the owner that the leases are done with. One that cannot be told lets them run out."""
        with suppress(Unavailable):  # closed since then
            flight = Flight(self.agent, remote.name, 0.0)
            with suppress(NixlError):
                flight.write(batched([_done(one) for one in entries], CHUNK_BYTES, BATCH_PIECES))
            self._let_go(flight, [self._giver(scratch)])
        self._remotes.leave(remote)

    async def _wave_off(self, handle: TensorHandle) -> None:
        location = read(handle.location)
        remote = self._remotes.enter(handle.owner)
        if (table := _near(remote, location)) is not None:
            table.mark_done(location.slot, location.token)
            self._remotes.leave(remote)
            return
        try:
            await self._remotes.load(remote, [location.agent], self._config.transfer_timeout_s)
            scratch = self._take_scratch(1)
        except NixlError as error:
            self._remotes.leave(remote)
            raise self._out_of_reach(error) from None
        except BaseException:
            self._remotes.leave(remote)
            raise
        self._scratch.view[scratch.address : scratch.address + 8] = location.token.to_bytes(8, sys.byteorder)
        self._tell(remote, _entries([location], self._scratch, scratch), scratch)

    def _out_of_reach(self, error: NixlError) -> Unavailable:
        here = self._config.transfer_devices == ucx.NO_DEVICE
        known = "; --transfer-devices none reaches processes of this host and user only" if here else ""
        return lost(f"its owner is gone or out of reach ({error}{known})")

    def _let_go(self, flight: Flight, give_back: Sequence[Callable[[], None]]) -> None:
        """Call ``give_back`` when ``flight`` has ended, for which nobody waits."""
        if flight.sweep():
            for each in give_back:
                each()
        else:
            self._linger(flight, give_back)

    def _take_scratch(self, entries: int) -> Span:
        """Raises Unavailable."""
        size = entries * ENTRY_BYTES
        start = self._scratch_free.take(size)
        if start is None:
            raise Unavailable("too many tensors are being fetched at once", code="arena_full")
        return Span(start, size)

    def _giver(self, scratch: Span) -> Callable[[], None]:
        return partial(self._scratch_free.give, *scratch)

    def _linger(self, flight: Flight, give_back: Sequence[Callable[[], None]]) -> None:
        """Nobody waits for ``flight`` any more: call ``give_back`` when it has ended."""
        self._lingering.keep(flight, give_back, asyncio.get_running_loop().time())
        self._stir.set()

    def _plan(self, moves: Sequence[Move], locations: Sequence[Location]) -> list[list[Piece]]:
        """What to read for all, in batches of a bounded size."""
        found: list[Piece] = []
        for move, location in zip(moves, locations, strict=True):
            whole = Piece(self._memory.address + move.buffer.block.start, location.address, move.buffer.size_bytes)
            remote_ends = [slab.address + slab.size for slab in location.slabs]
            found += cut(whole, self._slab_ends, remote_ends, CHUNK_BYTES)
        return batched(found, CHUNK_BYTES, BATCH_PIECES)

    def _tick(self) -> bool:
        self._lingering.sweep(asyncio.get_running_loop().time())
        return len(self._lingering) > 0


def _check_leases(entries: Sequence[Entry], moves: Sequence[Move], locations: Sequence[Location]) -> None:
    """The bytes are here: were the leases still open? Raises Unavailable when not."""
    for entry, move, location in zip(entries, moves, locations, strict=True):
        if not entry.allows(location.token, location.address, move.buffer.size_bytes):
            raise lost(LEASE_ENDED)


def _near(remote: Remote, location: Location) -> LeaseTable | None:
    """The lease table of ``remote``, if that is on this machine."""
    if not remote.sought:
        remote.sought = True
        remote.table = open_shared_table(remote.name, location.pid, location.fd)
    return remote.table


def _entries(locations: Sequence[Location], memory: AnonymousMemory, scratch: Span) -> list[Piece]:
    """The lease entries of ``locations``, each with its place in ``scratch`` of ``memory``."""
    base = memory.address + scratch.address
    return [Piece(base + place * ENTRY_BYTES, location.entry, ENTRY_BYTES) for place, location in enumerate(locations)]


def _done(entry: Piece) -> Piece:
    """From the token that was just read to the word that says done."""
    return Piece(entry.local, entry.remote + DONE_OFFSET, 8)
