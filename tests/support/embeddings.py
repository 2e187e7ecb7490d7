"""Safetensors files and request parts of precomputed embeddings, made without any library."""

from __future__ import annotations

import base64
import json
import random
import struct
from typing import Any, NamedTuple

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1}


class Raw(NamedTuple):
    """A tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def floats(*shape: int, seed: int = 0) -> Raw:
    """Random float32 values."""
    rng = random.Random(seed)
    count = 1
    for side in shape:
        count *= side
    return Raw("F32", shape, struct.pack(f"<{count}f", *(rng.gauss(0, 1) for _ in range(count))))


def grid(*sides: int, dtype: str = "I64", batched: bool = False) -> Raw:
    letter = "q" if dtype == "I64" else "i"
    return Raw(dtype, (1, len(sides)) if batched else (len(sides),), struct.pack(f"<{len(sides)}{letter}", *sides))


def numbers(*values: float, dtype: str = "F64") -> Raw:
    """What goes with an embedding: ``timestamps`` and the like."""
    letter = "d" if dtype == "F64" else "f"
    return Raw(dtype, (len(values),), struct.pack(f"<{len(values)}{letter}", *values))


def safetensors(**tensors: Raw) -> bytes:
    header: dict[str, Any] = {}
    at = 0
    for name, one in tensors.items():
        header[name] = {
            "dtype": one.dtype,
            "shape": list(one.shape),
            "data_offsets": [at, at + len(one.data)],
        }
        at += len(one.data)
    return with_header(header, b"".join(one.data for one in tensors.values()))


def with_header(header: Any, data: bytes = b"") -> bytes:
    """A file of any header: an object, or text that is taken as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def url_of(file: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(file).decode()


def part(kind: str, url: str, *, plain: bool = False) -> dict[str, Any]:
    """A content part; ``plain``: the URL by itself, not in an object."""
    field = f"{kind}_embeds"
    return {"type": field, field: url if plain else {"url": url}}
