"""Makes vLLM's prompt of a request and its embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.inputs.engine import tokens_input
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.v1.engine.async_llm import AsyncLLM

from triptych.cache.lru import ByteLru
from triptych.contracts.errors import BadRequest, MediaMissing, TriptychError
from triptych.contracts.media import DecodableMedium, Medium, PrecomputedEmbedding, Video
from triptych.contracts.request import GenerateRequest
from triptych.contracts.spans import Span
from triptych.engines.base import EngineOptions
from triptych.engines.vllm.ec import believes, store_of
from triptych.engines.vllm.flags import VllmFlags
from triptych.engines.vllm.mm_items import Item, Items, assemble, has_values
from triptych.media.decoder import MediaDecoder
from triptych.models.base import Checkpoint
from triptych.transfer.base import Buffer

NO_FRAMES: Mapping[str, Buffer] = {}
PROCESSED_BYTES = 256 << 20
"""Size of the cache of processed pixels, used if vLLM has none."""


class Prompts:
    """Gives each medium of a request the cheapest form that it came with and that the engine can take.

    1. An embedding from the transfer plane, or one that the client computed.
    2. Pixels: of frames from the transfer plane, of ``data``, or kept from an earlier request. Files are decoded in
       threads, vLLM's own processor runs in its one thread, and what it made is kept.
    3. No values, where the KV cache was computed elsewhere (``request.kv``).
    4. No values, where the EC connector will find them.

    Forms may be mixed within a request. A medium bears its content hash in all of them: vLLM's caches of
    embeddings and of KV blocks cannot and need not tell them apart. The one cache that could be misled is that of
    vLLM's processor, whose half in the engine's process answers for a name with whatever came under it last. Pixels
    and embeddings may stand for each other there; an item without values may not. So an engine that takes such
    items must run without that cache (``ec.media_args``), and one that has it is never sent any.
    """

    def __init__(self, options: EngineOptions, checkpoint: Checkpoint, flags: VllmFlags) -> None:
        """Creates the caches. Raises ConfigError for an EC connector that cannot work."""
        self._items = Items(checkpoint)
        self.decoder = MediaDecoder(options.media)
        self._processed: ByteLru[str, Item] = ByteLru(PROCESSED_BYTES if options.span is not Span.E else 0)
        self.store = store_of(flags, options.span, checkpoint)
        self._reads_store = options.span is not Span.E
        self._believes = believes(flags, options.span)

    async def of(self, engine: AsyncLLM, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> Any:
        """Returns the input of ``AsyncLLM.generate``, generated tokens included. No buffer is used once this returns.

        Raises MediaMissing, whose ``param`` names the first medium that is not to be had here, what the decoder
        raises, BadRequest for a prompt that does not fit its media, and TriptychError for an embedding that does
        not fit the model. What passes here cannot end the engine by its media.
        """
        if not request.media:
            return tokens_input([*request.token_ids, *request.generated_ids], cache_salt=request.salt or None)
        placeholders = {medium.kind: self._items.placeholder(medium.kind) for medium in request.media}
        _check_counts(engine, request.media)
        self._items.check_positions(request.media)
        found: list[Item | DecodableMedium] = []
        frames: dict[str, Buffer] = {}
        for index, medium in enumerate(request.media):
            buffer = embeddings[index] if embeddings else None
            if buffer is not None and self._items.by_frames(medium):
                frames[medium.content_hash], buffer = buffer, None
            found.append(self._without_pixels(engine, request, index, medium, buffer, frames))
        missing = [entry for entry in found if not isinstance(entry, Item)]
        pixels = iter(await self.pixels(engine, missing, frames) if missing else ())
        items = [entry if isinstance(entry, Item) else next(pixels) for entry in found]
        return assemble(request.token_ids, items, placeholders, request.generated_ids, request.salt)

    def encoding(self, media: Sequence[Item]) -> Any:
        """Returns a prompt of ``media`` alone, for an engine that only encodes."""
        placeholders = {item.kind: self._items.placeholder(item.kind) for item in media}
        return assemble([placeholders[item.kind] for item in media], media, placeholders, ())

    async def pixels(
        self, engine: AsyncLLM, media: Sequence[DecodableMedium], frames: Mapping[str, Buffer] = NO_FRAMES
    ) -> list[Item]:
        """Processes ``media`` for the model's own encoder, each content once. Raises the decoder's errors.

        ``frames`` are those of media that were decoded elsewhere, by content hash.
        """
        kept = {medium.content_hash: self._processed.get(medium.content_hash) for medium in media}
        new = {medium.content_hash: medium for medium in media if kept[medium.content_hash] is None}
        if new:
            made = await self._process(engine, list(new.values()), frames)
            kept.update({item.content_hash: item for item in made})
        return [item for medium in media if (item := kept[medium.content_hash]) is not None]

    def clear(self) -> None:
        """Forgets decoded and processed media."""
        self.decoder.cache.clear()
        self._processed.clear()

    async def close(self) -> None:
        await self.decoder.close()
        self._processed.clear()

    def _without_pixels(
        self,
        engine: AsyncLLM,
        request: GenerateRequest,
        index: int,
        medium: Medium,
        buffer: Buffer | None,
        frames: Mapping[str, Buffer],
    ) -> Item | DecodableMedium:
        """Returns the item of a medium, or the medium itself if its pixels are there. Raises MediaMissing."""
        if buffer is not None:
            return self._items.embedded(medium, buffer)
        here = medium.content_hash in frames or medium.data or self._is_kept(medium)
        if here and not isinstance(medium, PrecomputedEmbedding) and _limit(engine, medium.kind):
            return medium
        takes_bare = engine.vllm_config.ec_transfer_config is not None and engine.renderer.mm_processor_cache is None
        if takes_bare and (request.kv is not None or self._is_stored(medium)):
            return self._items.bare(medium)
        raise MediaMissing(
            f"{medium.kind} {index + 1} of the request ({medium.content_hash[:12]}) is not at this worker: "
            "send its embedding or its data",
            param=f"media[{index}]",
        )

    def _is_kept(self, medium: Medium) -> bool:
        return medium.content_hash in self._processed or medium.content_hash in self.decoder.cache

    def _is_stored(self, medium: Medium) -> bool:
        if self.store is None or not self._reads_store:
            return self._believes
        shape = self.store.use(medium.content_hash)
        return shape is not None and self._items.fits(medium, shape)

    async def _process(
        self, engine: AsyncLLM, media: Sequence[DecodableMedium], frames: Mapping[str, Buffer]
    ) -> list[Item]:
        """Runs vLLM's processor on a prompt of the media's placeholders alone."""
        async with self.decoder.decoded([medium for medium in media if medium.content_hash not in frames]) as files:
            left = iter(files)
            decoded = [
                await self._items.frames(frames[medium.content_hash]) if medium.content_hash in frames else next(left)
                for medium in media
            ]
            made = await self._render(engine, media, decoded)
        items = []
        kinds = dict.fromkeys(medium.kind for medium in media)
        processed = {
            kind: iter(zip(made["mm_placeholders"][kind], made["mm_kwargs"][kind], strict=True)) for kind in kinds
        }
        for medium in media:
            place, data = next(processed[medium.kind])
            ids = made["prompt_token_ids"][place.offset : place.offset + place.length]
            items.append(self._items.processed(medium, ids, data))
        if engine.renderer.mm_processor_cache is None:  # else vLLM keeps them, in the engine's process
            for item in items:
                self._processed.put(item.content_hash, item, _size_bytes(item))
        return items

    async def _render(self, engine: AsyncLLM, media: Sequence[DecodableMedium], decoded: Sequence[Any]) -> Any:
        kinds = dict.fromkeys(medium.kind for medium in media)
        prompt = {
            "prompt_token_ids": [self._items.placeholder(medium.kind) for medium in media],
            "multi_modal_data": {
                kind: [
                    _given(medium, content)
                    for medium, content in zip(media, decoded, strict=True)
                    if medium.kind == kind
                ]
                for kind in kinds
            },
            # The content's name spares vLLM hashing the values.
            "multi_modal_uuids": {
                kind: [medium.content_hash for medium in media if medium.kind == kind] for kind in kinds
            },
        }
        (made,) = await engine.renderer.render_cmpl_async([parse_model_prompt(engine.model_config, prompt)])
        return made


def _given(medium: DecodableMedium, decoded: Any) -> Any:
    """Returns a medium as vLLM's processor takes it.

    A video comes with the numbers and times of its frames, which some models need.
    """
    if not isinstance(medium, Video):
        return decoded
    metadata = {
        "fps": medium.fps,
        "total_num_frames": medium.num_frames,
        "duration": medium.num_frames / medium.fps if medium.fps > 0 else 0.0,
        "frames_indices": list(medium.frame_indices),
        "do_sample_frames": False,
    }
    return decoded, metadata


def failure(prompt: Any, *, guided: bool) -> TriptychError:
    """Returns the error behind vLLM's ``finish_reason`` ``error`` for ``prompt``.

    It is MediaMissing if the prompt lacked values that a cache or the EC connector had held a while ago. It is
    BadRequest for an answer under a grammar: vLLM then drew a token although the grammar allowed none.
    """
    kinds = prompt.get("mm_kwargs") or {}
    if any(item is None or not has_values(item) for items in kinds.values() for item in items):
        return MediaMissing("a medium that this worker held is gone: send its embedding or its data")
    if guided:
        return BadRequest(
            "response_format: no token is left that its grammar allows and that neither stop_token_ids, min_tokens nor "
            "ignore_eos rules out",
            param="response_format",
            code="no_token_allowed",
        )
    return TriptychError("the engine failed on this request; the worker's log has the cause")


def _limit(engine: AsyncLLM, kind: str) -> int:
    """Returns the maximum number of media of ``kind`` in a prompt.

    0 if vLLM was told to leave out their encoder, so that it takes only embeddings.
    """
    return int(engine.model_config.multimodal_config.get_limit_per_prompt(kind))


def _check_counts(engine: AsyncLLM, media: Sequence[Medium]) -> None:
    """Counts media. Raises BadRequest for more than ``--limit-mm-per-prompt`` or the model's code in vLLM allows.

    vLLM's processor would check that too, but gets only some of the media.
    """
    for kind, count in Counter(medium.kind for medium in media).items():
        if not (limit := _limit(engine, kind)):
            continue
        supported = engine.renderer.get_mm_processor().info.supported_mm_limits.get(kind)
        limit = limit if supported is None else min(limit, supported)
        if count > limit:
            raise BadRequest(f"at most {limit} media of kind {kind} may be given, not {count}", param="media")


def _size_bytes(item: Item) -> int:
    """Returns the bytes of an item's tensors. The times of a video's frames, a list of numbers, do not count."""
    elements = item.data.values() if item.data is not None else ()
    return sum(getattr(element.data, "nbytes", 0) for element in elements)
