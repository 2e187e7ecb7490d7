"""Checks embeddings that clients computed, at the worker that prefills, and copies them to transfer buffers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from triptych.contracts.card import EmbeddingSpec
from triptych.contracts.errors import BadRequest, MediaMissing
from triptych.contracts.media import Data, PrecomputedEmbedding
from triptych.contracts.tensor import DTYPE_BYTES
from triptych.media.embeddings.values import FLOATS, all_finite, convert
from triptych.media.errors import EMBEDDING_REFUSED, by_content, problem
from triptych.transfer.base import Buffer, Transfer

INLINE_BYTES = 64 * 1024
"""Smaller embeddings are checked and copied at once (0.05 ms), unless their dtype changes."""


def check(medium: PrecomputedEmbedding, spec: EmbeddingSpec) -> None:
    """Returns whether ``medium`` states an embedding of the model's form. Raises ValueError with what is wrong."""
    shape, dtype = medium.shape, medium.dtype
    if dtype not in FLOATS:
        raise ValueError(f"the embedding is of dtype {dtype}; taken are {', '.join(FLOATS)}")
    if shape[0] < 1 or shape[1] != spec.width:
        raise ValueError(f"the embedding is {list(shape)}; this model takes [tokens, {spec.width}]")


async def placed(media: Sequence[PrecomputedEmbedding], transfer: Transfer, dtype: str) -> list[Buffer]:
    """Returns buffers with the values of ``media`` as ``dtype``: all of them, or none.

    Raises MediaMissing for a medium that came by name only, BadRequest for values that do not match its shape, are not
    finite or exceed ``dtype``, and whatever ``Transfer.allocate`` raises.
    """
    for medium in media:
        if not medium.data:
            raise MediaMissing("a precomputed embedding came by name only, and is not here")
        if len(medium.data) != math.prod(medium.shape) * DTYPE_BYTES[medium.dtype]:
            raise refused(medium, "the embedding has other bytes than its shape and dtype take")
    shapes = [medium.shape for medium in media]
    buffers = await transfer.allocate(shapes, dtype)
    try:
        for medium, buffer in zip(media, buffers, strict=True):
            try:
                await _fill(medium, buffer, dtype)
            except BadRequest as error:
                raise refused(medium, error.message) from error
    except BaseException:
        for buffer in buffers:
            buffer.close()
        raise
    return buffers


def refused(medium: PrecomputedEmbedding, reason: str) -> BadRequest:
    return problem(BadRequest, by_content(medium), EMBEDDING_REFUSED, reason)


async def _fill(medium: PrecomputedEmbedding, buffer: Buffer, dtype: str) -> None:
    if len(medium.data) <= INLINE_BYTES and medium.dtype == dtype:
        _write(medium.data, dtype, dtype, buffer.data)
        return
    work = asyncio.ensure_future(asyncio.to_thread(_write, medium.data, medium.dtype, dtype, buffer.data))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])  # the memory may be given back only when nobody writes to it any more
        raise


def _write(data: Data, dtype: str, wanted: str, into: memoryview) -> None:
    if not all_finite(data, dtype):
        raise BadRequest("the embedding holds a value that is infinite or not a number", param="media")
    convert(data, dtype, wanted, into)
