"""Describes a worker: its model (the card) and itself (the instance)."""

from __future__ import annotations

import msgspec

from triptych.contracts.kv_link import KvLink
from triptych.contracts.spans import Span


class EmbeddingSpec(msgspec.Struct, frozen=True):
    """The form of a model's embeddings. Workers whose forms differ cannot serve together."""

    width: int
    """Values a token."""
    dtype: str


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a frontend must know of a model to accept requests for it."""

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
    embedding: EmbeddingSpec | None = None
    """None: the model takes no media, or none by embedding."""
    by_frames: tuple[str, ...] = ()
    """Media that encode workers hand over as the frames that the model sees, uint8 [frames, height, width, 3]."""
    files_digest: str = ""
    """A digest of the descriptive files in ``path`` (``models.files``), which the worker gives to frontends that lack
    them; empty if it does not.
    """


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One live worker: its address and what it hosts. Never changes once registered."""

    id: str
    """``name`` and the worker's birth: unique for ever."""
    name: str
    """``enc-0``: unique among those alive, the same again after a restart."""
    component: str
    """The worker's name in its graph, shared by its replicas."""
    span: Span
    """The stages that it is there for."""
    capable_span: Span
    """The stages that it can run where other workers are missing; contains ``span``."""
    engine: str
    model: ModelCard
    host: str
    port: int
    pid: int = 0
    keeps_media: bool = False
    """It keeps what it made of media (embeddings, decoded pictures): what it was sent once need not come again."""
    started_unix_s: float = 0.0
    reports_kv: bool = False
    """It says what its KV cache holds (``contracts.kv_events``)."""
    max_in_flight: int = 0
    """Requests that it holds at most; 0: it does not say."""
    tls: bool = False
    """Its request plane speaks TLS, and nothing else."""
    events: str = ""
    """The address of its event publisher, as ``planes.events`` spells it; empty if it has only the endpoint ``events``,
    as every worker has.
    """
    weights: tuple[tuple[str, str], ...] = ()
    """(name, digest) of each shard of weights in its checkpoint (``models.weights``)."""
    kv_link: KvLink | None = None
    """How its KV cache travels to or from other workers; None if it does not."""
    abilities: tuple[str, ...] = ()
    """The names of its engine's abilities (``engines.abilities.Abilities``)."""
