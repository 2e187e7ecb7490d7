"""Gets embeddings or frames for a worker that prefills: from its cache, by handle, or as the client sent them."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.cache.embedding import EmbeddingCache, Make
from triptych.contracts.card import ModelCard
from triptych.contracts.errors import BadRequest, MediaMissing, Unavailable
from triptych.contracts.media import Medium, PrecomputedEmbedding, Video
from triptych.contracts.tensor import TensorHandle
from triptych.stages.precomputed import check, placed, refused
from triptych.transfer.base import TRANSFER_FAILED, Buffer, Transfer


class Received:
    """Embeddings of one request's media: one entry for each, None where there is none. ``close`` releases them."""

    def __init__(self, media: Sequence[Medium], by_name: dict[str, Buffer | None]) -> None:
        self._by_name = by_name
        self.buffers = [by_name.get(medium.content_hash) for medium in media]

    def close(self) -> None:
        """Releases the buffers. May be called twice."""
        for buffer in self._by_name.values():
            if buffer is not None:
                buffer.close()
        self._by_name = {}


NOTHING = Received((), {})


class Receiver:
    """Gets the embeddings that come with a request's media, or that are here already."""

    def __init__(self, transfer: Transfer, cache: EmbeddingCache, card: ModelCard) -> None:
        """``card`` describes this worker's model. Media that it does not take are refused before they are fetched."""
        self._transfer = transfer
        self._cache = cache
        self._spec = card.embedding
        self._by_frames = card.by_frames

    async def embeddings(self, media: Sequence[Medium]) -> Received:
        """Returns the embeddings of ``media``.

        Raises MediaMissing if a handle cannot be fetched or a precomputed embedding is not here, Unavailable if there
        is no room for it, and BadRequest if it does not fit the model.
        """
        handles = {medium.content_hash: medium.embedding for medium in media if medium.embedding is not None}
        for medium in media:
            if medium.embedding is None:
                continue
            if isinstance(medium, Video) and medium.kind in self._by_frames:
                _check_frames(medium, medium.embedding)
            else:
                self._check(medium.embedding.shape, medium.embedding.dtype)
        sent = {medium.content_hash: medium for medium in media if isinstance(medium, PrecomputedEmbedding)}
        for medium in sent.values():
            self._check_precomputed(medium)
        names = dict.fromkeys(medium.content_hash for medium in media if medium.content_hash not in sent)
        wanted = [name for name in names if name in handles or self._cache.holds(name)]

        fetched: set[str] = set()

        async def fetch(names: list[str]) -> list[Buffer]:
            if any(name not in handles for name in names):  # this call joined another caller's fetch, which failed
                raise MediaMissing("an embedding that was on its way here did not arrive")
            fetched.update(names)
            return await self._transfer.fetch([handles[name] for name in names])

        async def place(names: list[str]) -> list[Buffer]:
            assert self._spec is not None
            return await placed([sent[name] for name in names], self._transfer, self._spec.dtype)

        by_name = await self._all(wanted, fetch)
        try:
            by_name |= await self._all(list(sent), place)
        except BaseException:
            Received((), by_name).close()
            raise
        self._transfer.release_remote([handle for name, handle in handles.items() if name not in fetched])
        return Received(media, by_name)

    async def _all(self, names: list[str], make: Make) -> dict[str, Buffer | None]:
        if not names:
            return {}
        try:
            return dict(zip(names, await self._cache.get(names, make), strict=True))
        except Unavailable as error:
            if error.code != TRANSFER_FAILED:
                raise
            # The owner or the transfer failed: this worker can go on if it gets the media again.
            raise MediaMissing(f"an embedding could not be fetched ({error.message})") from error

    def _check(self, shape: tuple[int, ...], dtype: str) -> None:
        if self._spec is None:
            raise Unavailable("this worker's model takes no embeddings")
        if len(shape) != 2 or shape[1] != self._spec.width or dtype != self._spec.dtype:
            raise BadRequest(
                f"an embedding of {list(shape)} {dtype} does not fit this model, which takes "
                f"[tokens, {self._spec.width}] {self._spec.dtype}"
            )

    def _check_precomputed(self, medium: PrecomputedEmbedding) -> None:
        if self._spec is None:
            raise refused(medium, "this model takes no precomputed embeddings")
        try:
            check(medium, self._spec)
        except ValueError as error:
            raise refused(medium, str(error)) from error


def _check_frames(medium: Video, handle: TensorHandle) -> None:
    expected = (len(medium.frame_indices), medium.height, medium.width, 3)
    if handle.shape != expected or handle.dtype != "uint8":
        raise BadRequest(
            f"frames of {list(handle.shape)} {handle.dtype} are not those of this {medium.kind}, which are "
            f"{list(expected)} uint8"
        )
