"""Puts media into prompts: checks them against the model, samples videos by its rule, and expands the placeholders."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from triptych.contracts.card import ModelCard
from triptych.contracts.errors import BadRequest, UnsupportedMedia
from triptych.contracts.media import MediaKind, Medium, PrecomputedEmbedding, Video
from triptych.contracts.tokens import TokenIds
from triptych.kv.prompt_keys import expanded_prompt_keys
from triptych.media.errors import EMBEDDING_REFUSED, problem
from triptych.media.loader import MediaReference
from triptych.media.naming import sampled_name
from triptych.models.base import Checkpoint, Expansion, ModelFamily
from triptych.models.mrope_budget import PositionsTooFar, check_positions
from triptych.models.precomputed import checked, expansion_of, metadata_of
from triptych.processor.prompt import Prompt
from triptych.processor.tokenizer import Tokenizer
from triptych.processor.video_sampling import VideoSampling
from triptych.router.routing import PromptKeys

_INLINE_TOKENS = 65_536
"""The keys of longer prompts are made in a thread: those of this many tokens take a millisecond."""

LoadMedia = Callable[[Sequence[MediaReference]], Awaitable[list[Medium]]]
"""Loads the media of a request, in order (``media.loader.MediaLoader``)."""


@dataclass(frozen=True)
class PromptMedia:
    """Puts media into the prompts of one model."""

    card: ModelCard
    checkpoint: Checkpoint
    family: ModelFamily
    tokenizer: Tokenizer
    placeholder_ids: Mapping[MediaKind, int]
    sampling: VideoSampling

    def check_kinds(self, media: Sequence[MediaReference]) -> None:
        """Raises BadRequest for a kind of medium that the served engine does not take."""
        for ref in media:
            if ref.kind not in self.card.modalities:
                takes = ", ".join(("text", *self.card.modalities))
                raise BadRequest(
                    f"{ref.item}: model {self.card.name} takes no {ref.kind}; it takes: {takes}",
                    param=ref.item,
                    code="modality_unsupported",
                )

    async def put_into(self, ids: TokenIds, media: Sequence[MediaReference], load: LoadMedia, salt: str) -> Prompt:
        """Loads ``media``, and returns the prompt of ``ids``, which have one placeholder for each medium.

        Raises the errors of ``load``, and BadRequest or UnsupportedMedia, with the medium's field, for a medium that
        the model refuses.
        """
        begun = time.perf_counter()
        loaded = await load([self._with_settings(ref) for ref in media])
        for medium, ref in zip(loaded, media, strict=True):
            self._check_precomputed(medium, ref)
        loaded = [self._sampled(medium) for medium in loaded]
        expansions = [self._expansion(medium, ref) for medium, ref in zip(loaded, media, strict=True)]
        self._check_positions(loaded, media)
        keys = PromptKeys(await self._keys_of(ids, loaded, expansions), salt)
        loaded = [self._described(medium) for medium in loaded]
        items = [ref.item for ref in media]
        return Prompt(ids, loaded, len(keys), keys, time.perf_counter() - begun, items=items)

    def _with_settings(self, ref: MediaReference) -> MediaReference:
        """Adds to ``ref`` the settings by which the model wants media of its kind decoded."""
        return ref._replace(settings=tuple(self.family.media[ref.kind].settings(self.checkpoint).items()))

    def _check_precomputed(self, medium: Medium, ref: MediaReference) -> None:
        """Checks an embedding. Raises BadRequest if its form is not that which the workers' model takes."""
        if not isinstance(medium, PrecomputedEmbedding):
            return
        (tokens, width), spec = medium.shape, self.card.embedding
        try:
            if spec is None:
                raise ValueError("this model takes no precomputed embeddings")
            if width != spec.width:
                raise ValueError(f"the embedding is {[tokens, width]}; this model takes [tokens, {spec.width}]")
            checked(self.family.media[medium.kind], self.checkpoint, medium)
        except ValueError as error:
            raise problem(BadRequest, ref.item, EMBEDDING_REFUSED, str(error)) from error

    def _sampled(self, medium: Medium) -> Medium:
        """Chooses the frames of a video that the model sees, and names it by them; other media stay as they are."""
        if not isinstance(medium, Video) or self.family.videos is None:
            return medium
        checkpoint = self.sampling.over(self.checkpoint)
        indices = self.family.videos.frame_indices(checkpoint, medium.num_frames, medium.fps)
        name = sampled_name(medium.content_hash, indices)
        return msgspec.structs.replace(medium, content_hash=name, frame_indices=indices)

    def _expansion(self, medium: Medium, ref: MediaReference) -> Expansion:
        """Returns the tokens of the prompt that stand for ``medium``."""
        try:
            return expansion_of(self.family.media[medium.kind], self.checkpoint, medium, self.tokenizer.plain)
        except ValueError as error:
            raise UnsupportedMedia(f"{ref.item}: {error}", param=ref.item, code="media_unsupported") from error

    def _check_positions(self, media: Sequence[Medium], refs: Sequence[MediaReference]) -> None:
        """Checks ``media``, whose expansions are known. Raises BadRequest if the model lacks positions for them all."""
        try:
            check_positions(self.family, self.checkpoint, media)
        except PositionsTooFar as error:
            item = refs[error.index].item
            raise problem(BadRequest, item, "context_length_exceeded", str(error)) from error

    async def _keys_of(self, ids: TokenIds, media: list[Medium], expansions: list[Expansion]) -> array[int]:
        """Returns the prompt as workers' KV caches have it."""
        if sum(len(expansion.token_ids) for expansion in expansions) <= _INLINE_TOKENS:
            return expanded_prompt_keys(ids, media, expansions, self.placeholder_ids)
        return await asyncio.to_thread(expanded_prompt_keys, ids, media, expansions, self.placeholder_ids)

    def _described(self, medium: Medium) -> Medium:
        """Adds to ``medium`` the facts about its embedding that the language model needs; they follow from its size."""
        if isinstance(medium, PrecomputedEmbedding):
            return medium
        metadata = metadata_of(self.family.media[medium.kind], self.checkpoint, medium)
        return msgspec.structs.replace(medium, metadata=metadata) if metadata else medium
