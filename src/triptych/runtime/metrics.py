"""A worker's metrics, as the frontend asks for them."""

from __future__ import annotations

from collections.abc import Iterator

from triptych.cache.embedding import EmbeddingCache
from triptych.contracts.metric import Metric
from triptych.engines.base import EngineStats
from triptych.transfer.base import TransferStats


def worker_metrics(engine: EngineStats, cache: EmbeddingCache, transfer: TransferStats) -> Iterator[Metric]:
    yield Metric("triptych_worker_running", "gauge", "Requests that the engine holds.", engine.running)
    yield Metric("triptych_worker_tokens", "counter", "Tokens made.", engine.generated_tokens)
    yield Metric("triptych_encoded_media", "counter", "Media that the engine encoded.", engine.encoded)
    yield from engine.media
    yield from engine.grammars
    yield from _of_cache(cache)
    yield from _of_transfer(transfer)


def _of_cache(cache: EmbeddingCache) -> Iterator[Metric]:
    store = cache.store
    name = "triptych_embedding_cache_"
    yield Metric(name + "hits", "counter", "Embeddings found in the cache.", store.hits)
    yield Metric(name + "misses", "counter", "Embeddings made or fetched because they were not there.", store.misses)
    yield Metric(name + "shared", "counter", "Embeddings whose making or fetching was under way.", cache.shared)
    yield Metric(name + "evictions", "counter", "Embeddings dropped to make room.", store.evictions)
    yield Metric(name + "too_large", "counter", "Embeddings larger than the whole cache.", store.too_large)
    yield Metric(name + "bytes", "gauge", "Bytes of embeddings kept.", store.size_bytes)
    yield Metric(name + "capacity_bytes", "gauge", "Most bytes of embeddings kept.", store.max_bytes)


def _of_transfer(stats: TransferStats) -> Iterator[Metric]:
    name = "triptych_transfer_"
    yield Metric(name + "arena_capacity_bytes", "gauge", "Most that the arena may hold.", stats.capacity_bytes)
    yield Metric(name + "arena_reserved_bytes", "gauge", "Memory of the arena taken so far.", stats.reserved_bytes)
    yield Metric(name + "arena_used_bytes", "gauge", "Bytes of the arena in use.", stats.used_bytes)
    yield Metric(name + "waiting", "gauge", "Callers waiting for room in the arena.", stats.waiting)
    yield Metric(name + "leases", "gauge", "Exports that wait to be fetched.", stats.leases)
    yield Metric(name + "exported", "counter", "Tensors exported.", stats.exported)
    yield Metric(name + "expired", "counter", "Exports that nobody fetched in time.", stats.expired)
    yield Metric(name + "fetched", "counter", "Tensors fetched from other workers.", stats.fetched)
    yield Metric(name + "fetched_bytes", "counter", "Bytes fetched from other workers.", stats.fetched_bytes)
    yield Metric(name + "failed", "counter", "Fetches that failed.", stats.failed)
