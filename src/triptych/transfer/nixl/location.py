"""Where a tensor lies in its owner's memory: what a handle says of it, and whether that can be so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from triptych.transfer.checks import decoded, malformed
from triptych.transfer.nixl.spans import Span, covers
from triptych.transfer.table import ENTRY_BYTES, SLOTS, TABLE_BYTES

_LIMIT = 1 << 64

_Address = Annotated[int, Meta(ge=0)]


class Slab(msgspec.Struct, array_like=True, frozen=True):
    """One registration of the owner, and NIXL's metadata of it."""

    address: _Address
    size: Annotated[int, Meta(gt=0)]
    metadata: bytes


class Location(msgspec.Struct, array_like=True, frozen=True):
    """``TensorHandle.location`` of a NIXL transfer, in msgpack."""

    address: _Address
    """Of the tensor, in the owner's process."""
    table: _Address
    """Of the owner's lease table."""
    slot: Annotated[int, Meta(ge=0, lt=SLOTS)]
    """Of the lease in it."""
    pid: _Address
    fd: _Address
    """Where processes of the owner's machine find the table: see ``shared_table``."""
    token: _Address
    agent: bytes
    """NIXL's metadata of the table, with how to connect."""
    slabs: list[Slab]
    """Those that the tensor lies in, in order."""

    @property
    def entry(self) -> int:
        """Address of the lease's entry."""
        return self.table + self.slot * ENTRY_BYTES


_DECODER = msgspec.msgpack.Decoder(Location)


def read(data: bytes) -> Location:
    """Raises BadRequest for what is no location, or has no lease."""
    location = decoded(_DECODER, data)
    if location.token >= _LIMIT or location.table % 8 or location.table + TABLE_BYTES > _LIMIT:
        raise malformed("it has no lease")
    return location


def checked(data: bytes, size: int) -> Location:
    """Raises BadRequest for a location that is not one of a tensor of ``size`` bytes."""
    location = read(data)
    slabs = [Span(slab.address, slab.size) for slab in location.slabs]
    if location.address + size > _LIMIT or not covers(slabs, Span(location.address, size)):
        raise malformed("it lies outside the owner's memory")
    return location


def metadata_of(locations: Sequence[Location]) -> Iterator[bytes]:
    """All that NIXL must have loaded to read from there, the connection first."""
    for location in locations:
        yield location.agent
        for slab in location.slabs:
            yield slab.metadata
