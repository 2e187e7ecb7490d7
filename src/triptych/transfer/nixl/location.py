"""Reads and checks the part of a handle that says where a tensor lies in its owner's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from triptych.transfer.checks import decoded, malformed
from triptych.transfer.nixl.copies import AddressRange, covers
from triptych.transfer.table import ENTRY_BYTES, SLOTS, TABLE_BYTES

_LIMIT = 1 << 64

_Address = Annotated[int, Meta(ge=0)]


class Slab(msgspec.Struct, array_like=True, frozen=True):
    """A registration of the owner, with NIXL's metadata of it."""

    address: _Address
    size: Annotated[int, Meta(gt=0)]
    metadata: bytes


class Location(msgspec.Struct, array_like=True, frozen=True):
    """The content of ``TensorHandle.location`` in a NIXL transfer, sent as msgpack."""

    address: _Address
    """The address of the tensor in the owner's process."""
    table: _Address
    """The address of the owner's lease table."""
    slot: Annotated[int, Meta(ge=0, lt=SLOTS)]
    """The lease's slot in that table."""
    pid: _Address
    fd: _Address
    """The owner's process and descriptor by which processes of its machine find the table; see ``shared_table``."""
    token: _Address
    agent: bytes
    """NIXL's metadata of the table, which includes how to connect."""
    slabs: list[Slab]
    """The slabs that the tensor lies in, in order."""

    @property
    def entry(self) -> int:
        """The address of the lease's entry in the table."""
        return self.table + self.slot * ENTRY_BYTES


_DECODER = msgspec.msgpack.Decoder(Location)


def read(data: bytes) -> Location:
    """Decodes a location. Raises BadRequest if it is malformed or has no possible lease."""
    location = decoded(_DECODER, data)
    if location.token >= _LIMIT or location.table % 8 or location.table + TABLE_BYTES > _LIMIT:
        raise malformed("it has no lease")
    return location


def checked(data: bytes, size: int) -> Location:
    """Decodes the location of a tensor of ``size`` bytes. Raises BadRequest if the tensor cannot lie there."""
    location = read(data)
    slabs = [AddressRange(slab.address, slab.size) for slab in location.slabs]
    if location.address + size > _LIMIT or not covers(slabs, AddressRange(location.address, size)):
        raise malformed("it lies outside the owner's memory")
    return location


def metadata_of(locations: Sequence[Location]) -> Iterator[bytes]:
    """Yields the metadata that NIXL must have loaded to read from ``locations``, the connection first."""
    for location in locations:
        yield location.agent
        for slab in location.slabs:
            yield slab.metadata
