"""A tensor that waits in another worker's memory, by handle."""

from __future__ import annotations

import msgspec

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int32": 4, "int64": 8}
"""Element types that move between workers, by the name that torch and numpy share, and their sizes."""


class TensorHandle(msgspec.Struct, frozen=True, array_like=True):
    """Everything that is needed to fetch one exported tensor, once, until it expires."""

    backend: str
    """Transfer back end of the owner: ``nixl``, ``shm`` or ``inproc``."""
    owner: str
    """The exporting transfer's id: unique to one life of one process."""
    lease: int
    """Number of the export at its owner."""
    shape: tuple[int, ...]
    dtype: str
    expires_unix_s: float
    """When the lease ends. From then on the owner may reuse the memory."""
    location: bytes
    """The place of the bytes, read by the transfer back end only. Untrusted input to the receiver."""
