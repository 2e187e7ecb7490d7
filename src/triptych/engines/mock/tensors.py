"""What the mock engine hands over: tensors that can be told from any others."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import shake_256

EMBEDDING_WIDTH = 8
EMBEDDING_DTYPE = "float32"
KV_PROTOCOL = "mock"
"""``KvLink.protocol``."""


def embedding_of(content_hash: str, tokens: int) -> bytes:
    """[tokens, EMBEDDING_WIDTH] of float32 bytes, drawn from the content's name."""
    return shake_256(content_hash.encode()).digest(tokens * EMBEDDING_WIDTH * 4)


def kv_of(token_ids: Sequence[int]) -> bytes:
    """[tokens] of int32 bytes: the prompt itself."""
    return array("i", token_ids).tobytes()
