"""Defines the handle of a tensor that waits in another worker's memory."""

from __future__ import annotations

import msgspec

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int32": 4, "int64": 8}
"""Sizes of the element types that move between workers, by the name that torch and numpy share."""


class TensorHandle(msgspec.Struct, frozen=True, array_like=True):
    """Everything that is needed to fetch one exported tensor once, until it expires."""

    backend: str
    """The owner's transfer back end: ``nixl``, ``shm`` or ``inproc``."""
    owner: str
    """The id of the exporting transfer, unique to one life of one process."""
    lease: int
    """The lease's number at its owner."""
    shape: tuple[int, ...]
    dtype: str
    expires_unix_s: float
    """When the lease ends. From then on the owner may reuse the memory."""
    location: bytes
    """The place of the bytes, read by the transfer back end only. Untrusted input to the receiver."""
