"""Makes the tensors that the mock engine hands over, each of which differs from all others."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import shake_256

EMBEDDING_WIDTH = 8
EMBEDDING_DTYPE = "float32"
KV_PROTOCOL = "mock"
"""``KvLink.protocol``."""


def embedding_of(content_hash: str, tokens: int) -> bytes:
    """Returns [tokens, EMBEDDING_WIDTH] as float32 bytes, drawn from the content hash."""
    return shake_256(content_hash.encode()).digest(tokens * EMBEDDING_WIDTH * 4)


def kv_of(token_ids: Sequence[int]) -> bytes:
    """Returns [tokens] as int32 bytes: the prompt itself."""
    return array("i", token_ids).tobytes()
