"""Prefills prompts at the mock engine: checks their media, counts their tokens, and spends the time."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from triptych.contracts.errors import MediaMissing, TriptychError
from triptych.contracts.media import Medium, PrecomputedEmbedding
from triptych.contracts.request import GenerateRequest, KvRoom
from triptych.engines.mock.faults import Faults
from triptych.engines.mock.model import Model
from triptych.engines.mock.pace import Pace, Turn
from triptych.media.decoder import MediaDecoder
from triptych.transfer.base import Buffer


class Prompts:
    """Prefills prompts. Without ``pace`` a prefill takes ``delay_s``."""

    def __init__(self, model: Model, decoder: MediaDecoder, pace: Pace | None, faults: Faults, delay_s: float) -> None:
        self._model = model
        self._decoder = decoder
        self._pace = pace
        self._faults = faults
        self._delay_s = delay_s

    async def prefill(self, request: GenerateRequest, embeddings: Sequence[Buffer | None]) -> int:
        """Returns the prompt's length with every placeholder expanded. Raises the error of a medium that is wrong."""
        self._faults.before_prefill(request.token_ids)
        expanded = len(request.token_ids)
        for index, medium in enumerate(request.media):
            buffer = embeddings[index] if embeddings else None
            tokens = buffer.shape[0] if buffer else await self._decoded_tokens(medium)
            if buffer and not self._model.is_right(medium, buffer, request.salt):
                raise TriptychError(f"media[{index}]: the embedding is not that of {medium.content_hash}")
            expanded += tokens - 1 + self._model.text_tokens_of(medium)
        if self._delay_s and self._pace is None:
            await asyncio.sleep(self._delay_s)
        return expanded

    async def _decoded_tokens(self, medium: Medium) -> int:
        if isinstance(medium, PrecomputedEmbedding):
            raise MediaMissing("an embedding came without its bytes, and is not here")
        async with self._decoder.decoded([medium]) as [decoded]:
            return self._model.tokens_of(medium, decoded)

    def turn(
        self, request: GenerateRequest, output_tokens: int, embeddings: Sequence[Buffer | None]
    ) -> AbstractContextManager[Turn | None]:
        """Puts the request into the modelled engine for the block. Yields None if no engine is modelled."""
        if self._pace is None or not output_tokens:
            return nullcontext()
        expansions = self._model.expansions(request.media)
        tokens = self._model.prompt_keys(request, expansions)
        if isinstance(request.kv, KvRoom):  # the prefill has made the token after those in ``generated_ids``
            made = len(request.generated_ids) + 1
            if output_tokens == 1:
                return nullcontext()
            return self._pace.turn(tokens, made + output_tokens - 1, made=made, salt=request.salt)
        if request.kv is not None:
            made = max(1, len(request.generated_ids))
            return self._pace.turn(tokens, made + output_tokens, made=made, salt=request.salt)
        here = [not (embeddings and embeddings[index]) for index in range(len(request.media))]
        rows = [
            (medium.content_hash, expansion.rows) for medium, expansion in zip(request.media, expansions, strict=True)
        ]
        media = [row for row, encoded_here in zip(rows, here, strict=True) if encoded_here]
        return self._pace.turn(tokens + array("I", request.generated_ids), output_tokens, media, salt=request.salt)
