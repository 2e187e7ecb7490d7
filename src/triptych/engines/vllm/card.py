"""Makes the model card of a started engine."""

from __future__ import annotations

from typing import Any

from triptych.contracts.card import EmbeddingSpec, ModelCard
from triptych.contracts.spans import Span
from triptych.engines.base import EngineOptions
from triptych.models.base import Checkpoint, ModelFamily
from triptych.models.registry import family_of

_ABLE = {Span.P: Span.EP, Span.D: Span.EPD, Span.PD: Span.EPD}
"""Span -> capable span, while vLLM holds the encoder too."""
_ABLE_WITHOUT_ENCODER = {Span.D: Span.PD}


def capable_span_of(config: Any, options: EngineOptions, checkpoint: Checkpoint) -> Span:
    """Returns the widest span that an engine with the ``VllmConfig`` ``config`` could host."""
    wider = _ABLE if _encodes(config, family_of(checkpoint)) else _ABLE_WITHOUT_ENCODER
    return wider.get(options.span, options.span)


def card_of(config: Any, options: EngineOptions, checkpoint: Checkpoint) -> ModelCard:
    """Returns the card of an engine with the ``VllmConfig`` ``config``."""
    family = family_of(checkpoint)
    embedding = None
    if family.embedding_width is not None:
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        embedding = EmbeddingSpec(family.embedding_width(checkpoint), dtype)
    return ModelCard(
        name=options.model_name,
        path=options.model_path,
        context_length=config.model_config.max_model_len,
        block_size=config.cache_config.block_size,
        modalities=family.modalities if _encodes(config, family) or embedding is not None else (),
        max_logprobs=config.model_config.max_logprobs,
        embedding=embedding,
        by_frames=family.by_frames,
    )


def _encodes(config: Any, family: ModelFamily) -> bool:
    """Tells whether vLLM keeps its encoder."""
    media = config.model_config.multimodal_config
    return media is None or any(media.get_limit_per_prompt(kind) for kind in family.modalities)
