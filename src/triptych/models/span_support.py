"""Checks which stages of a model can be hosted apart from the others."""

from __future__ import annotations

from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Span
from triptych.models.base import Checkpoint
from triptych.models.registry import family_of


def require_complete(checkpoint: Checkpoint) -> None:
    """Checks the checkpoint's config. Raises ConfigError if it lacks a setting that its family needs."""
    family = family_of(checkpoint)
    try:
        family.embedded(checkpoint)
        for modality in family.media.values():
            modality.placeholder(checkpoint)
        if family.embedding_width is not None:
            family.embedding_width(checkpoint)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be used: {error}"
        raise ConfigError(f"{checkpoint.path}/config.json {reason}, which {family.name} models have") from error


def require_span(checkpoint: Checkpoint, span: Span) -> None:
    """Checks ``span``. Raises ConfigError, with the reason, if no engine can ever host it for this model."""
    family = family_of(checkpoint)
    if span is not Span.E or family.embedding_width is not None or family.by_frames:
        return
    if not family.modalities:
        raise ConfigError("this model takes no media: there is nothing for span e to encode")
    raise ConfigError(
        f"span e cannot be split off for models of the family {family.name}: {family.no_embeddings}; "
        "serve it in the mode EPD (span epd) or EP/D (spans ep and d)"
    )
