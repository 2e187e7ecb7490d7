"""Runs the stage ``e`` at a worker: makes embeddings of media, or frames, and exports them to be fetched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from triptych.cache.embedding import EmbeddingCache
from triptych.contracts.errors import BadRequest, MediaMissing
from triptych.contracts.media import DecodableMedium, PrecomputedEmbedding
from triptych.contracts.stages import EncodeAnswer, EncodedMedium, EncodeRequest
from triptych.contracts.tensor import TensorHandle
from triptych.transfer.base import Buffer, Transfer

COPY_INLINE_BYTES = 4 << 20
"""The limit above which embeddings are copied in a thread. So many bytes take about a millisecond."""


class Encoded(Protocol):
    """The part of ``engines.abilities.Encoded`` that the stage needs."""

    @property
    def data(self) -> memoryview: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


class Encoder(Protocol):
    """The part of ``engines.abilities.Encoding`` that the stage needs."""

    async def encode(self, media: Sequence[DecodableMedium]) -> Sequence[Encoded | None]: ...


class EncodeStage:
    """Encodes each content once, for all callers that ask at the same time, and exports the result to each of them."""

    def __init__(self, encoder: Encoder, transfer: Transfer, cache: EmbeddingCache) -> None:
        self._encoder = encoder
        self._transfer = transfer
        self._cache = cache

    async def answer(self, request: EncodeRequest) -> EncodeAnswer:
        """Returns a handle to the embedding, or to the frames, of each medium.

        Raises MediaMissing if a medium came by name only and is not here, BadRequest for a medium that came as an
        embedding, and whatever the engine raises.
        """
        begun = time.perf_counter()
        media = {medium.content_hash: medium for medium in _to_encode(request)}
        cached = {name for name in media if self._cache.holds(name)}

        async def make(names: list[str]) -> list[Buffer | None]:
            if lacking := [name for name in names if not media[name].data]:
                raise MediaMissing(f"{len(lacking)} media came by name only, and this worker does not hold them")
            return await self._make([media[name] for name in names])

        buffers = await self._cache.get(list(media), make)
        items = [
            EncodedMedium(
                content_hash=name,
                embedding=None if buffer is None else self._export(buffer),
                cached=name in cached,
            )
            for name, buffer in zip(media, buffers, strict=True)
        ]
        return EncodeAnswer(media=items, encode_s=time.perf_counter() - begun)

    def _export(self, buffer: Buffer) -> TensorHandle:
        try:
            return self._transfer.export(buffer)
        finally:
            buffer.close()  # the lease holds it

    async def _make(self, media: Sequence[DecodableMedium]) -> list[Buffer | None]:
        made = await self._encoder.encode(media)
        buffers = await self._room_for([encoded for encoded in made if encoded is not None])
        return [None if encoded is None else await _filled(buffers.pop(0), encoded.data) for encoded in made]

    async def _room_for(self, made: Sequence[Encoded]) -> list[Buffer]:
        """Allocates a buffer for each result, or none. Embeddings and frames are allocated apart, by their dtype."""
        buffers: dict[int, Buffer] = {}
        try:
            for dtype in dict.fromkeys(encoded.dtype for encoded in made):
                places = [place for place, encoded in enumerate(made) if encoded.dtype == dtype]
                allocated = await self._transfer.allocate([made[place].shape for place in places], dtype)
                buffers |= zip(places, allocated, strict=True)
        except BaseException:
            for buffer in buffers.values():
                buffer.close()
            raise
        return [buffers[place] for place in range(len(made))]


def _to_encode(request: EncodeRequest) -> Iterator[DecodableMedium]:
    for medium in request.media:
        if isinstance(medium, PrecomputedEmbedding):
            raise BadRequest("a precomputed embedding is not to be encoded", param="media")
        yield medium


async def _filled(buffer: Buffer, data: memoryview) -> Buffer:
    if len(data) <= COPY_INLINE_BYTES:
        buffer.data[:] = data
    else:
        await asyncio.to_thread(buffer.data.__setitem__, slice(None), data)
    return buffer
