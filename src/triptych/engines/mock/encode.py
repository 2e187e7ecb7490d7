"""Implements the encode stage of the mock engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from triptych.contracts.media import DecodableMedium
from triptych.engines.abilities import Encoded
from triptych.engines.mock.load import MockLoad
from triptych.engines.mock.model import Model
from triptych.engines.mock.pace import Pace
from triptych.engines.mock.tensors import EMBEDDING_DTYPE, EMBEDDING_WIDTH, embedding_of
from triptych.media.decoder import MediaDecoder


class MockEncoding:
    """Implements ``engines.abilities.Encoding``. Without ``pace`` a call takes ``delay_s``."""

    def __init__(self, model: Model, decoder: MediaDecoder, pace: Pace | None, load: MockLoad, delay_s: float) -> None:
        self._model = model
        self._decoder = decoder
        self._pace = pace
        self._load = load
        self._delay_s = delay_s

    async def encode(self, media: Sequence[DecodableMedium]) -> list[Encoded]:
        async with self._load.request():
            async with self._decoder.decoded(media) as decoded:
                tokens = [
                    self._model.tokens_of(medium, content) for medium, content in zip(media, decoded, strict=True)
                ]
            await self._take_time(media, tokens)
            self._load.encoded += len(media)
            return [_encoded(medium, count) for medium, count in zip(media, tokens, strict=True)]

    async def _take_time(self, media: Sequence[DecodableMedium], tokens: list[int]) -> None:
        if self._pace is not None:
            names = [medium.content_hash for medium in media]
            await self._pace.encode(list(zip(names, tokens, strict=True)))
        elif self._delay_s:
            await asyncio.sleep(self._delay_s)


def _encoded(medium: DecodableMedium, tokens: int) -> Encoded:
    data = memoryview(embedding_of(medium.content_hash, tokens))
    return Encoded(data, (tokens, EMBEDDING_WIDTH), EMBEDDING_DTYPE, medium.metadata)
