"""Clears the caches of a worker together: its engine's caches and its own embedding cache."""

from __future__ import annotations

from collections.abc import Collection

from triptych.cache.embedding import EmbeddingCache
from triptych.contracts.admin import CacheName
from triptych.engines.abilities import CacheControl


class WorkerCaches:
    """Implements ``engines.abilities.CacheControl`` for a worker. ``engine`` is None where its engine has no cache."""

    def __init__(self, engine: CacheControl | None, embeddings: EmbeddingCache) -> None:
        self._engine = engine
        self._embeddings = embeddings
        own: tuple[CacheName, ...] = ("embeddings",) if embeddings.store.max_bytes else ()
        self.caches: tuple[CacheName, ...] = tuple(dict.fromkeys([*self._engines(), *own]))

    def _engines(self) -> tuple[CacheName, ...]:
        return () if self._engine is None else self._engine.caches

    async def clear(self, caches: Collection[CacheName], wait_s: float) -> None:
        """Clears the engine's caches first: if it refuses, nothing is cleared."""
        wanted = [cache for cache in self._engines() if cache in caches]
        if wanted and self._engine is not None:
            await self._engine.clear(wanted, wait_s)
        if "embeddings" in caches:
            self._embeddings.clear()
