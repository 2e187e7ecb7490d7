"""Collects a worker's metrics for the frontend, which asks for them."""

from __future__ import annotations

from collections.abc import Iterator

from triptych.cache.embedding import EmbeddingCache
from triptych.contracts.metric import Metric, counter, gauge
from triptych.engines.base import EngineStats
from triptych.transfer.base import TransferStats


def worker_metrics(engine: EngineStats, cache: EmbeddingCache, transfer: TransferStats) -> Iterator[Metric]:
    yield gauge("triptych_engine_requests_running", "Requests that the engine holds.", engine.running)
    yield counter("triptych_engine_generated_tokens_total", "Tokens generated.", engine.generated_tokens)
    yield counter("triptych_engine_encoded_media_total", "Media that the engine encoded.", engine.encoded)
    yield from engine.media
    yield from engine.grammars
    yield from _of_cache(cache)
    yield from _of_transfer(transfer)


def _of_cache(cache: EmbeddingCache) -> Iterator[Metric]:
    store = cache.store
    name = "triptych_embedding_cache_"
    yield counter(name + "hits_total", "Embeddings found in the cache.", store.hits)
    yield counter(
        name + "misses_total", "Embeddings made or fetched because the cache did not have them.", store.misses
    )
    yield counter(name + "shared_total", "Embeddings whose making or fetching was already in progress.", cache.shared)
    yield counter(name + "evictions_total", "Embeddings dropped to make room.", store.evictions)
    yield counter(name + "too_large_total", "Embeddings larger than the whole cache.", store.too_large)
    yield gauge(name + "bytes", "Bytes of embeddings kept.", store.size_bytes)
    yield gauge(name + "limit_bytes", "The most bytes of embeddings that may be kept.", store.max_bytes)


def _of_transfer(stats: TransferStats) -> Iterator[Metric]:
    name = "triptych_transfer_"
    yield gauge(name + "arena_limit_bytes", "The most bytes that the arena may take.", stats.capacity_bytes)
    yield gauge(name + "arena_reserved_bytes", "Memory that the arena has taken.", stats.reserved_bytes)
    yield gauge(name + "arena_used_bytes", "Bytes of the arena in use.", stats.used_bytes)
    yield gauge(name + "waiting", "Callers waiting for room in the arena.", stats.waiting)
    yield gauge(name + "leases", "Exports that wait to be fetched.", stats.leases)
    yield counter(name + "exported_total", "Tensors exported.", stats.exported)
    yield counter(name + "expired_total", "Exports that nobody fetched in time.", stats.expired)
    yield counter(name + "fetched_total", "Tensors fetched from other workers.", stats.fetched)
    yield counter(name + "fetched_bytes_total", "Bytes fetched from other workers.", stats.fetched_bytes)
    yield counter(name + "failed_total", "Fetches that failed.", stats.failed)
