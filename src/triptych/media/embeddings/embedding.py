"""Reads a precomputed embedding from a safetensors file, checks it and names it."""

from __future__ import annotations

import math
import re
import struct

from triptych.contracts.errors import BadRequest, UnsupportedMedia
from triptych.contracts.media import MAX_NUMBERS, Data, MediaKind, Metadata, Numbers, PrecomputedEmbedding
from triptych.contracts.shown import shown
from triptych.media.embeddings.safetensors import FormatError, Tensor, is_safetensors, read_tensors
from triptych.media.embeddings.values import FLOATS, all_finite
from triptych.media.errors import DAMAGED, EMBEDDING_REFUSED, UNSUPPORTED, problem
from triptych.media.formats.sniff import type_of
from triptych.media.naming import embedding_name

_PT = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")
_NUMBERS = {"int32": "i", "int64": "q", "float32": "f", "float64": "d"}


def is_pt(data: Data) -> bool:
    """Tells whether ``data`` begins as ``torch.save`` writes: a ZIP archive or, before torch 1.6, a pickle."""
    return _PT.match(data) is not None and not is_safetensors(data)


def embedding_medium(kind: MediaKind, data: Data, item: str) -> PrecomputedEmbedding:
    """Returns the medium of ``kind`` whose embedding the safetensors file ``data`` holds.

    Blocks for about 1.3 ms a MiB.

    If the file holds one tensor, that is the embedding, whatever its name. If it holds several, the embedding is the
    one called ``<kind>_embeds`` or ``embeds``; the others describe it, in a few numbers each. Whether the model accepts
    these facts is checked later.

    Raises UnsupportedMedia (415) for another file, BadRequest (400) for a damaged one and for tensors that are no
    embedding of any model: of another rank, of another dtype, or with values that are not finite.
    """
    if not data:
        raise problem(BadRequest, item, DAMAGED, "the embedding is empty (0 bytes)")
    if is_pt(data):
        reason = "PyTorch's own files are read by file: URL only; send safetensors"
        raise problem(UnsupportedMedia, item, UNSUPPORTED, reason)
    if not is_safetensors(data):
        found = type_of(data)
        what = f"the file type is {found}" if found else "the data is not a safetensors file"
        raise problem(UnsupportedMedia, item, UNSUPPORTED, f"{what}; send an embedding as safetensors")
    try:
        tensors = read_tensors(data)
    except FormatError as error:
        raise problem(BadRequest, item, DAMAGED, f"the safetensors file is refused: {error}") from None
    name = _embedding_in(tensors, kind, item)
    tensor = tensors.pop(name)
    shape = _matrix(name, tensor, item)
    metadata: Metadata = {name: _numbers(name, fact, data, item) for name, fact in sorted(tensors.items())}
    values = data[tensor.begin : tensor.end]
    if not all_finite(values, tensor.dtype):
        raise _not_finite(name, item)
    content_hash = embedding_name(kind, values, shape, tensor.dtype, metadata)
    return PrecomputedEmbedding(
        kind=kind, content_hash=content_hash, data=values, metadata=metadata, shape=shape, dtype=tensor.dtype
    )


def _embedding_in(tensors: dict[str, Tensor], kind: MediaKind, item: str) -> str:
    if len(tensors) == 1:
        return next(iter(tensors))
    names = [name for name in (f"{kind}_embeds", "embeds") if name in tensors]
    if len(names) != 1:
        reason = f"of a safetensors file of {len(tensors)} tensors one must be called {kind}_embeds or embeds"
        raise _refused(item, reason)
    return names[0]


def _matrix(name: str, tensor: Tensor, item: str) -> tuple[int, int]:
    """Returns (tokens, width) of an embedding [tokens, width] or [1, tokens, width]."""
    shape = tensor.shape[1:] if len(tensor.shape) == 3 and tensor.shape[0] == 1 else tensor.shape
    if len(shape) != 2 or 0 in shape:
        reason = f"tensor {shown(name)} is of shape {list(tensor.shape)}; an embedding is [tokens, width]"
        raise _refused(item, reason)
    if tensor.dtype not in FLOATS:
        raise _refused(item, f"tensor {shown(name)} is of dtype {tensor.dtype}; an embedding is of {', '.join(FLOATS)}")
    return shape[0], shape[1]


def _numbers(name: str, tensor: Tensor, data: Data, item: str) -> Numbers:
    """Reads an auxiliary tensor: [n] or [1, n] finite numbers."""
    shape = tensor.shape[1:] if len(tensor.shape) == 2 and tensor.shape[0] == 1 else tensor.shape
    if len(shape) != 1 or not 0 < shape[0] <= MAX_NUMBERS or tensor.dtype not in _NUMBERS:
        reason = (
            f"tensor {shown(name)} is {list(tensor.shape)} {tensor.dtype}; what goes with an embedding is of "
            f"{', '.join(_NUMBERS)}, and of 1 to {MAX_NUMBERS} numbers"
        )
        raise _refused(item, reason)
    numbers = struct.unpack(f"<{shape[0]}{_NUMBERS[tensor.dtype]}", data[tensor.begin : tensor.end])
    if not all(map(math.isfinite, numbers)):
        raise _not_finite(name, item)
    return numbers


def _not_finite(name: str, item: str) -> BadRequest:
    return _refused(item, f"tensor {shown(name)} holds a value that is infinite or not a number")


def _refused(item: str, reason: str) -> BadRequest:
    return problem(BadRequest, item, EMBEDDING_REFUSED, reason)
