"""Describes a worker: its model (the card) and itself (the instance)."""

from __future__ import annotations

import msgspec

from triptych.contracts.kv_link import KvLink
from triptych.contracts.spans import Span


class EmbeddingSpec(msgspec.Struct, frozen=True):
    """The form of a model's embeddings. Workers whose forms differ cannot serve together."""

    width: int
    """Number of values for each token."""
    dtype: str


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a frontend must know of a model to accept requests for it."""

    name: str
    """The name that clients use."""
    path: str
    """The checkpoint's folder, with tokenizer, chat template and configs."""
    context_length: int
    """The limit on tokens of prompt and output together."""
    block_size: int = 16
    """Number of tokens in a KV block."""
    modalities: tuple[str, ...] = ()
    """The media that the served engine takes: any of ``image``, ``video`` and ``audio``."""
    max_logprobs: int = 20
    """The limit on alternatives that the engine reports for each token; -1 allows the whole vocabulary."""
    embedding: EmbeddingSpec | None = None
    """The shape of media embeddings. None if the model takes no media, or none by embedding."""
    by_frames: tuple[str, ...] = ()
    """The media that encode workers hand over as the frames that the model sees, uint8 [frames, height, width, 3]."""
    files_digest: str = ""
    """A digest of the descriptive files in ``path`` (``models.files``), which the worker gives to frontends that lack
    them; empty if it does not.
    """


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One live worker: its address and what it hosts. Never changes once registered."""

    id: str
    """``name`` and the worker's time of birth, so that it is unique for ever."""
    name: str
    """A name such as ``enc-0``: unique among live instances, and the same again after a restart."""
    component: str
    """The worker's name in its graph, shared by its replicas."""
    span: Span
    """The stages that the worker is there for."""
    capable_span: Span
    """The stages that the worker can run if other workers are missing. It contains ``span``."""
    engine: str
    model: ModelCard
    host: str
    port: int
    pid: int = 0
    keeps_media: bool = False
    """Whether the worker caches what it made of media (embeddings, decoded pictures), so that a medium need be sent
    once."""
    started_unix_s: float = 0.0
    reports_kv: bool = False
    """Whether the worker reports what its KV cache holds (``contracts.kv_events``)."""
    max_in_flight: int = 0
    """The limit on requests that the worker holds; 0 if it does not say."""
    tls: bool = False
    """Whether the worker's request plane requires TLS."""
    events: str = ""
    """The address of its event publisher, as ``planes.events`` spells it; empty if it has only the endpoint ``events``,
    as every worker has.
    """
    weights: tuple[tuple[str, str], ...] = ()
    """Pairs (name, digest) of the shards of weights in the worker's checkpoint (``models.weights``)."""
    kv_link: KvLink | None = None
    """How its KV cache travels to or from other workers; None if it does not."""
    abilities: tuple[str, ...] = ()
    """The names of its engine's abilities (``engines.abilities.Abilities``)."""
