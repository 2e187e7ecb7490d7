"""Moves tensors between processes and hosts by NIXL (UCX): receivers READ from the owner's registered memory."""

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
from triptych.transfer.core import CHUNK_BYTES, BaseTransfer, TensorFetch
from triptych.transfer.leases import Lease
from triptych.transfer.nixl import ucx
from triptych.transfer.nixl.agent import NixlAgent, NixlError
from triptych.transfer.nixl.copies import AddressRange, Copy, batched, cut
from triptych.transfer.nixl.flight import AbandonedFlights, Flight
from triptych.transfer.nixl.location import Location, Slab, checked, metadata_of, read
from triptych.transfer.nixl.remotes import Remote, Remotes
from triptych.transfer.nixl.shared_table import SharedTable, open_shared_table
from triptych.transfer.table import DONE_OFFSET, ENTRY_BYTES, TABLE_BYTES, Entry, LeaseTable

log = logging.getLogger("triptych.transfer")

BATCH_COPIES = 128
"""The limit on copies of one NIXL transfer."""
SCRATCH_ENTRIES = 8192
"""The limit on tensors whose lease entries all fetches under way may read together."""


class NixlTransfer(BaseTransfer):
    """Registers each slab once. The owner's process takes no part in a fetch once both processes are connected.

    A receiver reads the bytes. Then it reads the lease's entry (see ``table``), which tells whether the bytes were
    still those that were exported. Finally it marks the entry as done. On the owner's machine it has the
    table mapped; elsewhere it reads and writes the entry by NIXL too.
    """

    backend = "nixl"

    def __init__(self, config: TransferConfig) -> None:
        super().__init__(config, f"nixl-{secrets.token_hex(12)}")
        self._agent: NixlAgent | None = None
        self._registered: list[Any] = []
        self._slabs: list[Slab] = []
        self._slab_ends: list[int] = []
        self._abandoned = AbandonedFlights(config.transfer_timeout_s)
        self._pid = os.getpid()

    async def start(self) -> None:
        agent = self._agent = await asyncio.to_thread(NixlAgent, self.id, self._config.transfer_devices)
        self._warn_of_slow_copies()
        self._remotes = Remotes(agent)
        self._memory = AnonymousMemory(self.capacity_bytes)
        self._table = SharedTable(self.id)
        self._table_metadata = self._register(AddressRange(self._table.address, TABLE_BYTES), connection=True)
        self._scratch = AnonymousMemory(SCRATCH_ENTRIES * ENTRY_BYTES)
        self._scratch_free = FreeExtents()
        self._scratch_free.give(0, SCRATCH_ENTRIES * ENTRY_BYTES)
        self._register(AddressRange(self._scratch.address, SCRATCH_ENTRIES * ENTRY_BYTES))
        self._begin(self._memory, self._table.table, base=self._memory.address, on_backed=self._backed)

    def _warn_of_slow_copies(self) -> None:
        if self._config.transfer_devices == ucx.NO_DEVICE and (why := ucx.why_no_direct_copy()):
            log.warning("tensors go through shared memory, several times as slow as a direct copy: %s", why)

    async def close(self) -> None:
        """Closes as the port says. Transfers under way are aborted before the memory that they write to is freed."""
        agent, self._agent = self._agent, None
        await super().close()
        if agent is None:
            return
        self._abandoned.close()
        self._table.close()
        for registered in self._registered:
            with suppress(NixlError):
                agent.deregister(registered)
        agent.close()

    def _register(self, memory: AddressRange, *, connection: bool = False) -> bytes:
        """Registers memory and returns its metadata. Raises NixlError."""
        registered = self.agent.register(memory)
        self._registered.append(registered)
        return self.agent.metadata(registered, connection=connection)

    def _backed(self, start: int, stop: int) -> None:
        """Registers a slab that the arena took. Raises OSError."""
        memory = AddressRange(self._memory.address + start, stop - start)
        try:
            self._slabs.append(Slab(*memory, self._register(memory)))
        except NixlError as error:
            raise OSError(f"NIXL cannot register it ({error})") from None
        self._slab_ends.append(memory.address + memory.size)

    @property
    def agent(self) -> NixlAgent:
        """The agent of this process. Raises Unavailable once it is closed."""
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
        """Returns the slabs that the range lies in, in order; none for an empty range."""
        first = bisect_right(self._slab_ends, address)
        last = bisect_left(self._slab_ends, address + size)
        return self._slabs[first : last + 1] if size else []

    def _token(self, handle: TensorHandle) -> int:
        return read(handle.location).token

    async def _fetch_remote(self, owner: str, fetches: Sequence[TensorFetch]) -> None:
        locations = [checked(fetch.handle.location, fetch.buffer.size_bytes) for fetch in fetches]
        remote = self._remotes.enter(owner)
        table = _shared_table_of(remote, locations[0])
        try:
            scratch = self._take_scratch(len(fetches)) if table is None else None
            entries = await self._read(remote, fetches, locations, table, scratch)
        except BaseException:
            self._remotes.leave(remote)
            raise
        if scratch is None:
            self._remotes.leave(remote)
            return
        # Later: the bytes are here, and the caller need not wait until the owner is told.
        asyncio.get_running_loop().call_soon(self._mark_done, remote, entries, scratch)

    async def _read(
        self,
        remote: Remote,
        fetches: Sequence[TensorFetch],
        locations: Sequence[Location],
        table: LeaseTable | None,
        scratch: AddressRange | None,
    ) -> list[Copy]:
        """Reads the bytes and then checks the entries of their leases.

        With ``table``, the entries are checked there and marked as done. Without it, they are read into ``scratch``,
        and the copies that did so are returned. A failure gives ``scratch`` back.
        """
        limit_s = self._config.transfer_timeout_s
        flight = Flight(self.agent, remote.name, asyncio.get_running_loop().time() + limit_s)
        try:
            await self._remotes.load(remote, metadata_of(locations), limit_s)
            await flight.read(self._read_batches(fetches, locations))
            if table is not None:
                _check_leases([table.entry(location.slot) for location in locations], fetches, locations)
                for location in locations:
                    table.mark_done(location.slot, location.token)
                return []
            assert scratch is not None
            entries = _entry_copies(locations, self._scratch, scratch)
            await flight.read(batched(entries, CHUNK_BYTES, BATCH_COPIES))
            words = self._scratch.view[scratch.address : scratch.address + scratch.size]
            _check_leases(Entry.read_all(words), fetches, locations)
            return entries
        except BaseException as error:
            give_back = [fetch.buffer.share().close for fetch in fetches]
            self._finish(flight, give_back if scratch is None else [*give_back, self._scratch_giver(scratch)])
            if isinstance(error, NixlError):
                remote.failed = not error.refused or remote.users == 1
                raise self._out_of_reach(error) from None
            remote.failed = remote.failed or isinstance(error, TimeoutError)
            raise

    def _mark_done(self, remote: Remote, entries: Sequence[Copy], scratch: AddressRange) -> None:
        """Tells the owner that the leases are done. If that fails, they expire."""
        with suppress(Unavailable):  # closed since then
            flight = Flight(self.agent, remote.name, 0.0)
            with suppress(NixlError):
                flight.write(batched([_done_copy(entry) for entry in entries], CHUNK_BYTES, BATCH_COPIES))
            self._finish(flight, [self._scratch_giver(scratch)])
        self._remotes.leave(remote)

    async def _release_at_owner(self, handle: TensorHandle) -> None:
        location = read(handle.location)
        remote = self._remotes.enter(handle.owner)
        if (table := _shared_table_of(remote, location)) is not None:
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
        self._mark_done(remote, _entry_copies([location], self._scratch, scratch), scratch)

    def _out_of_reach(self, error: NixlError) -> Unavailable:
        here = self._config.transfer_devices == ucx.NO_DEVICE
        known = "; --transfer-devices none reaches processes of this host and user only" if here else ""
        return lost(f"its owner is gone or out of reach ({error}{known})")

    def _finish(self, flight: Flight, give_back: Sequence[Callable[[], None]]) -> None:
        """Calls ``give_back`` when ``flight`` has ended. Nobody waits for it."""
        if flight.sweep():
            for call in give_back:
                call()
        else:
            self._linger(flight, give_back)

    def _take_scratch(self, entries: int) -> AddressRange:
        """Takes memory for so many lease entries. Raises Unavailable if there is none."""
        size = entries * ENTRY_BYTES
        start = self._scratch_free.take(size)
        if start is None:
            raise Unavailable("too many tensors are being fetched at once", code="arena_full")
        return AddressRange(start, size)

    def _scratch_giver(self, scratch: AddressRange) -> Callable[[], None]:
        return partial(self._scratch_free.give, *scratch)

    def _linger(self, flight: Flight, give_back: Sequence[Callable[[], None]]) -> None:
        """Has the timer call ``give_back`` when ``flight`` has ended."""
        self._abandoned.keep(flight, give_back, asyncio.get_running_loop().time())
        self._wake_timer.set()

    def _read_batches(self, fetches: Sequence[TensorFetch], locations: Sequence[Location]) -> list[list[Copy]]:
        """Returns the copies that read all tensors, in batches of a bounded size."""
        found: list[Copy] = []
        for fetch, location in zip(fetches, locations, strict=True):
            whole = Copy(self._memory.address + fetch.buffer.block.start, location.address, fetch.buffer.size_bytes)
            remote_ends = [slab.address + slab.size for slab in location.slabs]
            found += cut(whole, self._slab_ends, remote_ends, CHUNK_BYTES)
        return batched(found, CHUNK_BYTES, BATCH_COPIES)

    def _tick(self) -> bool:
        self._abandoned.sweep(asyncio.get_running_loop().time())
        return len(self._abandoned) > 0


def _check_leases(entries: Sequence[Entry], fetches: Sequence[TensorFetch], locations: Sequence[Location]) -> None:
    """Raises Unavailable if a lease was no longer open when its bytes had arrived."""
    for entry, fetch, location in zip(entries, fetches, locations, strict=True):
        if not entry.allows(location.token, location.address, fetch.buffer.size_bytes):
            raise lost(LEASE_ENDED)


def _shared_table_of(remote: Remote, location: Location) -> LeaseTable | None:
    """Returns the lease table of ``remote`` if that is on this machine."""
    if not remote.table_sought:
        remote.table_sought = True
        remote.table = open_shared_table(remote.name, location.pid, location.fd)
    return remote.table


def _entry_copies(locations: Sequence[Location], memory: AnonymousMemory, scratch: AddressRange) -> list[Copy]:
    """Returns the copies that read the lease entries of ``locations`` into ``scratch`` of ``memory``."""
    base = memory.address + scratch.address
    return [Copy(base + place * ENTRY_BYTES, location.entry, ENTRY_BYTES) for place, location in enumerate(locations)]


def _done_copy(entry: Copy) -> Copy:
    """Returns the copy that writes the token, which was just read, to the word ``done`` of its entry."""
    return Copy(entry.local, entry.remote + DONE_OFFSET, 8)
