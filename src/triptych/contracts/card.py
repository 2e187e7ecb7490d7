"""What a worker tells of itself: its model (the card) and itself (the instance)."""

from __future__ import annotations

import msgspec

from triptych.contracts.spans import Span


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """What a frontend must know of a model to accept requests for it."""

    name: str
    """The name that clients use."""
    path: str
    """Folder of the checkpoint (tokenizer, chat template, configs)."""
    context_length: int
    """Most tokens of prompt and output together."""
    block_size: int = 16
    """Tokens a KV-cache block."""
    modalities: tuple[str, ...] = ()
    """Media that the served engine takes: of ``image``, ``video``, ``audio``."""
    max_logprobs: int = 20
    """Most alternatives a token that the engine reports; -1: the whole vocabulary."""


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One live worker: where it is and what it hosts. Unique by ``id``; never changes once registered."""

    id: str
    component: str
    """The worker's name in its graph, shared by its replicas."""
    span: Span
    engine: str
    model: ModelCard
    host: str
    port: int
    pid: int = 0
    started_unix_s: float = 0.0
