"""Defines the messages about a worker's KV cache, in our own hashes (``kv.block_hash``), and about its load."""

from __future__ import annotations

from array import array
from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

HASH_BYTES = 8


class Level(IntEnum):
    """How far down a worker's memory is counted. Each level contains those before it."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class KvChange(msgspec.Struct, frozen=True, array_like=True):
    """Blocks that a worker now holds, or no longer holds, counting all tiers down to ``level``.

    A worker that holds a block also holds the blocks before it. The sender ensures that, so an index need not check it.
    """

    level: Annotated[int, Meta(ge=0, le=2)]
    stored: bool
    hashes: bytes
    """Block hashes as little-endian uint64. Stored blocks: parents before children. Removed blocks: children first."""

    def __post_init__(self) -> None:
        if len(self.hashes) % HASH_BYTES:
            raise ValueError(f"{len(self.hashes)} bytes are no block hashes")


class KvBatch(msgspec.Struct, frozen=True, array_like=True):
    """A batch of changes, which apply in order."""

    sequence: int
    """The message's number, which counts up by one."""
    changes: list[KvChange] = []
    reset: bool = False
    """Whether the worker holds only the blocks in ``changes``, as in a snapshot or after a clear."""


def packed(hashes: list[int]) -> bytes:
    """Returns block hashes in the form of ``KvChange.hashes``."""
    return array("Q", hashes).tobytes()


def unpacked(hashes: bytes) -> array[int]:
    """Returns the block hashes of a ``KvChange.hashes``."""
    numbers = array("Q")
    numbers.frombytes(hashes)
    return numbers


class Load(msgspec.Struct, frozen=True, array_like=True):
    """The work of a worker, or the work that one request adds to it."""

    prefill_tokens: int = 0
    """Number of prompt tokens that are being prefilled or wait for it."""
    kv_tokens: int = 0
    """Number of tokens in the KV caches of running requests."""
    requests: int = 0

    def plus(self, other: Load) -> Load:
        """Returns the sum of both."""
        return Load(
            self.prefill_tokens + other.prefill_tokens,
            self.kv_tokens + other.kv_tokens,
            self.requests + other.requests,
        )

    def less(self, other: Load) -> Load:
        """Returns the difference, with no part below 0."""
        return Load(
            max(0, self.prefill_tokens - other.prefill_tokens),
            max(0, self.kv_tokens - other.kv_tokens),
            max(0, self.requests - other.requests),
        )


NO_LOAD = Load()


class WorkerUpdate(msgspec.Struct, frozen=True, array_like=True):
    """One message of the event plane, from one worker. A part that is missing has not changed."""

    kv: KvBatch | None = None
    load: Load | None = None
    """The load of all frontends but the receiver."""


EVENTS = "events"
"""The endpoint of every worker that takes a ``GenerateRequest.frontend_id`` in UTF-8, and answers WorkerUpdates
without end. The first one holds a snapshot."""


class NumberedUpdate(msgspec.Struct, frozen=True, array_like=True):
    """One message of a worker to all its subscribers."""

    birth: str
    """A random name of the publisher. Numbers of different publishers cannot be compared."""
    number: int
    """Counts up by one with each message."""
    changes: list[KvChange] = []
    loads: dict[str, Load] | None = None
    """The load of each frontend, by its id. None if it has not changed."""


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """The whole state of a worker after message ``number``."""

    birth: str
    number: int
    changes: list[KvChange]
    """All blocks that the worker holds, as changes of an empty cache."""
    loads: dict[str, Load]


SNAPSHOT = "snapshot"
"""The endpoint of workers that publish. It takes nothing and answers one Snapshot."""
