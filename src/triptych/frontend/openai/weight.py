"""Counts the memory that a decoded request takes, for the memory budget of all requests.

A single emoji makes a text of letters take four bytes for each letter.
"""

from __future__ import annotations

import sys
from typing import Any

from triptych.contracts.tokens import TOKEN_BYTES, TokenIds

BYTES_A_TOKEN = 8
"""The bytes for each token of a prompt: its id, and its share of the block hashes."""
OBJECT_BYTES = 128
"""The bytes of a message, a part, or a list or object of a few entries, without its texts."""
_NUMBER_BYTES = 40


def prompt_bytes(prompt: Any) -> int:
    """Counts a prompt of plain completions: a text, token ids, or a list of either."""
    if isinstance(prompt, TokenIds):
        return TOKEN_BYTES * len(prompt)
    if isinstance(prompt, list):
        if prompt and isinstance(prompt[0], int):
            return _NUMBER_BYTES * len(prompt)
        return sum(map(prompt_bytes, prompt))
    return sys.getsizeof(prompt)


def value_bytes(value: Any) -> int:
    """Counts any JSON value. Its depth and size are within their limits already."""
    if isinstance(value, dict):
        return OBJECT_BYTES + sum(value_bytes(key) + value_bytes(member) for key, member in value.items())
    if isinstance(value, list):
        return OBJECT_BYTES + sum(map(value_bytes, value))
    return sys.getsizeof(value) if isinstance(value, str) else _NUMBER_BYTES
