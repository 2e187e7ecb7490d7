"""Moves tensors between processes of one host and user by shared memory."""

from __future__ import annotations

import mmap
import os
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import ConfigError
from triptych.contracts.tensor import TensorHandle
from triptych.transfer.arena.memory import FileMemory
from triptych.transfer.checks import LEASE_ENDED, decoded, lost, malformed
from triptych.transfer.core import BaseTransfer, TensorFetch, copy
from triptych.transfer.leases import Lease
from triptych.transfer.shm import files as shm_files
from triptych.transfer.table import SLOTS, TABLE_BYTES, LeaseTable

MAX_PEERS = 16
"""The limit on other processes whose memory is kept mapped; the one used longest ago is unmapped, unless a fetch uses
it."""


class _Location(msgspec.Struct, array_like=True, frozen=True):
    offset: Annotated[int, Meta(ge=0)]
    slot: Annotated[int, Meta(ge=0, lt=SLOTS)]
    token: int


_LOCATION = msgspec.msgpack.Decoder(_Location)


class ShmTransfer(BaseTransfer):
    """Has its arena in a file that processes of the same user map read-only, and its leases in one that they also
    write."""

    backend = "shm"

    def __init__(self, config: TransferConfig, folder: Path = shm_files.FOLDER) -> None:
        super().__init__(config, f"shm-{os.getpid()}-{secrets.token_hex(8)}")
        self._folder = folder
        self._table_fd = -1
        self._peers: OrderedDict[str, _Peer] = OrderedDict()

    async def start(self) -> None:
        try:
            shm_files.remove_dead(self._folder)
            arena, self._table_fd = shm_files.create(self._folder, self.id)
            memory = FileMemory(arena, self.capacity_bytes)
            os.posix_fallocate(self._table_fd, 0, TABLE_BYTES)
            table = LeaseTable(memoryview(mmap.mmap(self._table_fd, TABLE_BYTES)))
        except OSError as error:
            await self.close()
            raise ConfigError(f"--transfer shm needs room in {self._folder}: {error.strerror or error}") from None
        self._begin(memory, table)

    async def close(self) -> None:
        await super().close()
        shm_files.remove(self._folder, self.id)
        while self._peers:
            self._peers.popitem()[1].close()
        if self._table_fd >= 0:
            os.close(self._table_fd)
            self._table_fd = -1

    def _locate(self, lease: Lease) -> bytes:
        return msgspec.msgpack.encode(_Location(lease.buffer.block.start, lease.slot, lease.token))

    def _token(self, handle: TensorHandle) -> int:
        return decoded(_LOCATION, handle.location).token

    async def _fetch_remote(self, owner: str, fetches: Sequence[TensorFetch]) -> None:
        locations = [decoded(_LOCATION, fetch.handle.location) for fetch in fetches]
        peer = self._peer(owner)
        peer.users += 1
        try:
            for location, (_, buffer) in zip(locations, fetches, strict=True):
                await peer.fetch(location, buffer.data)
        finally:
            peer.users -= 1
        if not peer.alive():
            self._forget(owner)
            raise lost("its owner is gone")
        for location in locations:
            peer.table.mark_done(location.slot, location.token)

    async def _release_at_owner(self, handle: TensorHandle) -> None:
        location = decoded(_LOCATION, handle.location)
        self._peer(handle.owner).table.mark_done(location.slot, location.token)

    def _peer(self, owner: str) -> _Peer:
        """Returns the mapped memory of ``owner``. Raises Unavailable if the owner is gone."""
        peer = self._peers.get(owner)
        if peer is None:
            if not shm_files.is_owner(owner):
                raise malformed("its owner's name is not one")
            self._drop_dead_peers()
            try:
                peer = self._peers[owner] = _Peer(self._folder, owner)
            except (OSError, ValueError):
                raise lost("its owner is gone") from None
        if not peer.alive():
            self._forget(owner)
            shm_files.remove(self._folder, owner)
            raise lost("its owner is gone")
        self._peers.move_to_end(owner)
        if len(self._peers) > MAX_PEERS:
            self._forget(next((owner for owner, peer in self._peers.items() if not peer.users), ""))
        return peer

    def _drop_dead_peers(self) -> None:
        for owner in [owner for owner, peer in self._peers.items() if not peer.alive()]:
            self._forget(owner)

    def _forget(self, owner: str) -> None:
        if peer := self._peers.pop(owner, None):
            peer.close()


class _Peer:
    """The mapped arena and lease table of another process."""

    def __init__(self, folder: Path, owner: str) -> None:
        """Maps the files. Raises OSError or ValueError if they do not exist or are not what they should be."""
        self.users = 0
        """Number of fetches under way."""
        arena, size = shm_files.open_remote(shm_files.arena_path(folder, owner), os.O_RDONLY, 1)
        try:
            self._arena = memoryview(mmap.mmap(arena, size, prot=mmap.PROT_READ))
        finally:
            os.close(arena)
        self._table_fd, _ = shm_files.open_remote(shm_files.table_path(folder, owner), os.O_RDWR, TABLE_BYTES)
        self.table = LeaseTable(memoryview(mmap.mmap(self._table_fd, TABLE_BYTES)))

    def alive(self) -> bool:
        return self._table_fd >= 0 and shm_files.is_alive(self._table_fd)

    async def fetch(self, location: _Location, target: memoryview) -> None:
        """Copies what was exported into ``target``. Raises Unavailable if the lease ends before the copy does."""
        source = self._arena[location.offset : location.offset + len(target)]
        if len(source) != len(target):
            raise malformed("it lies outside the owner's memory")
        self._check(location, len(target))
        await copy(source, target)
        self._check(location, len(target))

    def _check(self, location: _Location, size: int) -> None:
        if not self.table.entry(location.slot).allows(location.token, location.offset, size):
            raise lost(LEASE_ENDED)

    def close(self) -> None:
        """Closes the table's file. The mappings are freed when the last fetch that uses them ends."""
        if self._table_fd >= 0:
            os.close(self._table_fd)
            self._table_fd = -1
