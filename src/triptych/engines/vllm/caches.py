"""Clears vLLM's caches, and those of this package."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from triptych.contracts.admin import CacheName
from triptych.contracts.errors import Unavailable
from triptych.contracts.spans import Span
from triptych.engines.load import RETRY_AFTER_S, Load
from triptych.engines.vllm.failures import in_our_terms
from triptych.engines.vllm.live import LiveEngine
from triptych.engines.vllm.prompt import Prompts


class VllmCaches:
    """Implements ``engines.abilities.CacheControl``.

    No request may run meanwhile. Otherwise vLLM would keep its prefix cache, and the two halves of its media cache, in
    this process and in the engine's, would no longer agree.
    """

    def __init__(
        self, live: LiveEngine, prompts: Prompts, load: Load, span: Span, on_cleared: Callable[[], None]
    ) -> None:
        """Takes the engine's parts. ``on_cleared`` is called when the prefix cache was cleared."""
        self._live = live
        self._on_cleared = on_cleared
        self._prompts = prompts
        self._load = load
        self.caches = self._there(span)

    def _there(self, span: Span) -> tuple[CacheName, ...]:
        config = self._live.engine.vllm_config
        there: list[CacheName] = []
        if span is not Span.E and config.cache_config.enable_prefix_caching:
            there.append("prefix")
        if config.model_config.multimodal_config is not None:
            there.append("media")
        if span is Span.E and self._prompts.store is not None:
            there.append("embeddings")
        return tuple(there)

    async def clear(self, caches: Collection[CacheName], wait_s: float) -> None:
        """Clears as ``CacheControl.clear`` does, including a prefix cache in host memory. vLLM keeps one on a disk."""
        async with self._load.alone(wait_s):
            with in_our_terms("clear caches"):
                if "prefix" in caches:
                    await self._clear_prefixes()
                if "media" in caches:
                    await self._clear_media()
            if "embeddings" in caches and self._prompts.store is not None:
                await asyncio.to_thread(self._prompts.store.clear)

    async def _clear_prefixes(self) -> None:
        """Clears the prefix cache. Raises Unavailable while KV caches wait to be read by other workers."""
        if not await self._live.engine.reset_prefix_cache(reset_connector=True):
            raise Unavailable(
                "KV caches of finished prefills wait for the workers that decode; nothing was cleared. Try again",
                code="caches_in_use",
                retry_after_s=RETRY_AFTER_S,
            )
        self._on_cleared()

    async def _clear_media(self) -> None:
        await self._live.engine.reset_mm_cache()
        await self._live.engine.reset_encoder_cache()
        self._prompts.clear()
