"""Checks a handle before anything in it is used."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from triptych.contracts.errors import BadRequest, Unavailable
from triptych.contracts.tensor import TensorHandle
from triptych.transfer.arena.buffer import TensorSpec, tensor_spec
from triptych.transfer.base import TRANSFER_FAILED

MAX_DIMENSIONS = 8
MAX_SIZE_BYTES = 1 << 46
MAX_LOCATION_BYTES = 1 << 18

T = TypeVar("T")


def checked_spec(handle: TensorHandle, backend: str) -> TensorSpec:
    """Returns the tensor of ``handle``. Raises BadRequest if the handle is malformed or of another back end."""
    if handle.backend != backend:
        raise BadRequest(
            f"a tensor waits in a {handle.backend[:32]!r} transfer, and this worker uses {backend!r}: "
            "give both the same --transfer"
        )
    if len(handle.shape) > MAX_DIMENSIONS or len(handle.location) > MAX_LOCATION_BYTES:
        raise malformed("it is too large")
    try:
        made = tensor_spec(handle.shape, handle.dtype)
    except ValueError as error:
        raise malformed(str(error)) from None
    if made.size_bytes > MAX_SIZE_BYTES:
        raise malformed(f"a tensor of {made.size_bytes:,} bytes")
    return made


def decoded(decoder: msgspec.msgpack.Decoder[T], location: bytes) -> T:
    """Decodes the location in a handle. Raises BadRequest if that fails."""
    try:
        return decoder.decode(location)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise malformed("its location does not decode") from None


def malformed(why: str) -> BadRequest:
    """Returns the error of a handle that no owner made."""
    return BadRequest(f"malformed tensor handle: {why}", code="bad_tensor_handle")


def lost(why: str) -> Unavailable:
    """Returns the error of a fetch that cannot succeed any more."""
    return Unavailable(f"a tensor could not be fetched: {why}", code=TRANSFER_FAILED)


LEASE_ENDED = "its lease ended, or it was fetched already"
