"""Clears the mock engine's caches."""

from __future__ import annotations

from collections.abc import Collection

from triptych.contracts.admin import CacheName
from triptych.engines.load import Load
from triptych.engines.mock.pace import Pace
from triptych.media.decoder import MediaDecoder


class MockCaches:
    """Implements ``engines.abilities.CacheControl``. ``pace`` is None if no prefix cache is modelled."""

    def __init__(self, decoder: MediaDecoder, pace: Pace | None, load: Load) -> None:
        self._decoder = decoder
        self._pace = pace
        self._load = load
        self.caches: tuple[CacheName, ...] = ("media",) if pace is None else ("prefix", "media")

    async def clear(self, caches: Collection[CacheName], wait_s: float) -> None:
        async with self._load.alone(wait_s):
            if self._pace is not None and "prefix" in caches:
                self._pace.clear_prefixes()
            if "media" in caches:
                self._decoder.cache.clear()
                if self._pace is not None:
                    self._pace.clear_embeddings()
