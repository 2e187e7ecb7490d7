"""Reads safetensors files without torch or numpy, and checks everything that they state.

A file (https://github.com/huggingface/safetensors) consists of eight bytes with the length of the header; the header,
which is a JSON object of each tensor's dtype, shape and place; and the tensors' bytes, one after the other, no gaps.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from triptych.contracts.media import Data
from triptych.contracts.shown import shown

MAX_HEADER_BYTES = 64 * 1024
"""Maximum size of a header. A checkpoint's may be larger, but a checkpoint is no embedding."""
MAX_TENSORS = 16
MAX_NAME_CHARS = 64
MAX_DIMENSIONS = 8

DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "I64": ("int64", 8),
}
"""The format's names of the element types that are read -> our name, and the size in bytes."""

_LENGTH_BYTES = 8
_ABOUT = "__metadata__"
_Whole = Annotated[int, Meta(ge=0, lt=1 << 62)]


class FormatError(Exception):
    """Raised for a file that is damaged, or holds something that is not supported. The message is for users."""


class Tensor(NamedTuple):
    """Locates one tensor of a file, whose bytes are ``data[begin:end]``."""

    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[list[_Whole], Meta(max_length=MAX_DIMENSIONS)]
    data_offsets: tuple[_Whole, _Whole]


def is_safetensors(data: Data) -> bool:
    """Tells whether ``data`` begins with a length and a JSON object. No file of another medium does."""
    return data[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def read_tensors(data: Data) -> dict[str, Tensor]:
    """Returns the file's tensors by name. Raises FormatError unless every byte of the file belongs to one."""
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if start > _LENGTH_BYTES + MAX_HEADER_BYTES:
        raise FormatError(f"its header is larger than {MAX_HEADER_BYTES:,} bytes")
    if not is_safetensors(data) or start > len(data):
        raise FormatError("it is truncated")
    header = _header(data[_LENGTH_BYTES:start])
    if len(header) > MAX_TENSORS:
        raise FormatError(f"it holds {len(header)} tensors; at most {MAX_TENSORS} are read")
    tensors = {name: _tensor(name, entry, start) for name, entry in header.items()}
    at = start
    for tensor in sorted(tensors.values(), key=lambda entry: (entry.begin, entry.end)):
        if tensor.begin != at:
            raise FormatError("its tensors overlap, or leave gaps")
        at = tensor.end
    if at != len(data):
        raise FormatError("it is truncated, or longer than its tensors")
    return tensors


def _header(text: Data) -> dict[str, Any]:
    """Returns the header's entries by name. Uses Python's own decoder, which shows names that occur twice."""
    try:
        header = json.loads(str(text, "utf-8"), object_pairs_hook=_without_repeats, parse_constant=_refused)
    except FormatError:
        raise
    except (ValueError, RecursionError):
        raise FormatError("its header is not JSON") from None
    if not isinstance(header.pop(_ABOUT, {}), dict):
        raise FormatError(f"its header's {_ABOUT} is no object")
    return dict(header)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise FormatError("its header has a name twice")
    return made


def _refused(constant: str) -> None:
    raise FormatError(f"its header holds {constant}")


def _tensor(name: str, value: Any, start: int) -> Tensor:
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise FormatError(f"a tensor's name is empty, longer than {MAX_NAME_CHARS} characters, or not printable")
    try:
        entry = msgspec.convert(value, _Entry)
    except msgspec.ValidationError:
        raise FormatError(f"its header does not say dtype, shape and place of {shown(name)}") from None
    if entry.dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise FormatError(f"tensor {shown(name)} is of dtype {shown(entry.dtype, 16)}; read are {known}")
    dtype, size = DTYPES[entry.dtype]
    begin, end = entry.data_offsets
    if end - begin != size * math.prod(entry.shape):
        raise FormatError(f"tensor {shown(name)} has other bytes than its shape and dtype take")
    return Tensor(tuple(entry.shape), dtype, start + begin, start + end)
