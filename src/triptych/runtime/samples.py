"""A worker's metrics, as the frontend asks for them."""

from __future__ import annotations

from collections.abc import Iterator

from triptych.cache.embedding import EmbeddingCache
from triptych.contracts.stages import Sample
from triptych.engines.base import EngineStats
from triptych.transfer.base import TransferStats


def samples(engine: EngineStats, cache: EmbeddingCache, transfer: TransferStats) -> Iterator[Sample]:
    yield Sample("triptych_worker_running", "gauge", "Requests that the engine holds.", engine.running)
    yield Sample("triptych_worker_tokens", "counter", "Tokens made.", engine.generated_tokens)
    yield Sample("triptych_encoded_media", "counter", "Media that the engine encoded.", engine.encoded)
    yield from engine.media
    yield from engine.grammars
    yield from _of_cache(cache)
    yield from _of_transfer(transfer)


def _of_cache(cache: EmbeddingCache) -> Iterator[Sample]:
    store = cache.store
    name = "triptych_embedding_cache_"
    yield Sample(name + "hits", "counter", "Embeddings found in the cache.", store.hits)
    yield Sample(name + "misses", "counter", "Embeddings made or fetched because they were not there.", store.misses)
    yield Sample(name + "shared", "counter", "Embeddings whose making or fetching was under way.", cache.shared)
    yield Sample(name + "evictions", "counter", "Embeddings dropped to make room.", store.evictions)
    yield Sample(name + "too_large", "counter", "Embeddings larger than the whole cache.", store.too_large)
    yield Sample(name + "bytes", "gauge", "Bytes of embeddings kept.", store.size_bytes)
    yield Sample(name + "capacity_bytes", "gauge", "Most bytes of embeddings kept.", store.max_bytes)


def _of_transfer(stats: TransferStats) -> Iterator[Sample]:
    name = "triptych_transfer_"
    yield Sample(name + "arena_capacity_bytes", "gauge", "Most that the arena may hold.", stats.capacity_bytes)
    yield Sample(name + "arena_reserved_bytes", "gauge", "Memory of the arena taken so far.", stats.reserved_bytes)
    yield Sample(name + "arena_used_bytes", "gauge", "Bytes of the arena in use.", stats.used_bytes)
    yield Sample(name + "waiting", "gauge", "Callers waiting for room in the arena.", stats.waiting)
    yield Sample(name + "leases", "gauge", "Exports that wait to be fetched.", stats.leases)
    yield Sample(name + "exported", "counter", "Tensors exported.", stats.exported)
    yield Sample(name + "expired", "counter", "Exports that nobody fetched in time.", stats.expired)
    yield Sample(name + "fetched", "counter", "Tensors fetched from other workers.", stats.fetched)
    yield Sample(name + "fetched_bytes", "counter", "Bytes fetched from other workers.", stats.fetched_bytes)
    yield Sample(name + "failed", "counter", "Fetches that failed.", stats.failed)
