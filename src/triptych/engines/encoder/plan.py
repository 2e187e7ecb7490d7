"""What is known of a picture before it is decoded, from its header and the checkpoint's files."""

from __future__ import annotations

import math
from dataclasses import dataclass

from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, ConfigError, MediaMissing, UnsupportedMedia
from triptych.contracts.request import Medium
from triptych.media.errors import UNSUPPORTED, problem
from triptych.media.image import PIXEL_BYTES
from triptych.media.sniff import inspect_image
from triptych.models.base import Checkpoint, ModelFamily

ITEM = "image"
PATCH_BYTES = 3 * 2 * 14 * 14 * 4
"""Memory of a preprocessed patch: channels, frames, pixels, float32."""


@dataclass(frozen=True)
class Plan:
    """What a picture will become."""

    shape: tuple[int, int]
    """[tokens, hidden] of its embedding."""
    metadata: dict[str, tuple[int, ...]]
    patches: int
    """What the vision tower works on: its cost in a batch."""
    memory_bytes: int
    """Decoded and preprocessed."""


def plan_medium(medium: Medium, limits: MediaLimits, family: ModelFamily, checkpoint: Checkpoint) -> Plan:
    """From the medium's own header; believes nothing that the medium states. Some microseconds.

    Raises MediaMissing without data, and BadRequest and its like for what this model or ``limits`` refuse.
    """
    if medium.kind != "image":
        raise problem(UnsupportedMedia, ITEM, UNSUPPORTED, f"a picture is needed here, not {medium.kind}")
    if not medium.data:
        raise MediaMissing(f"medium {medium.content_hash} came without its data")
    info = inspect_image(medium.data, limits, ITEM)
    try:
        return plan_size(info.width, info.height, family, checkpoint)
    except ValueError as error:
        raise problem(BadRequest, ITEM, UNSUPPORTED, str(error)) from None


def plan_size(width: int, height: int, family: ModelFamily, checkpoint: Checkpoint) -> Plan:
    """For a picture of ``width`` x ``height`` pixels. Raises ValueError for a shape that the model refuses."""
    modality = family.media["image"]
    picture = Medium(kind="image", content_hash="", format="", width=width, height=height)
    tokens = modality.tokens(checkpoint, picture)
    metadata = modality.metadata(checkpoint, picture)
    patches = math.prod(metadata.get("image_grid_thw", (tokens,)))
    memory_bytes = width * height * PIXEL_BYTES + patches * PATCH_BYTES
    return Plan((tokens, width_of(family, checkpoint)), metadata, patches, memory_bytes)


def width_of(family: ModelFamily, checkpoint: Checkpoint) -> int:
    """Values a token. Raises ConfigError where the family takes no embeddings, or the config does not say."""
    if family.embedding_width is None:
        raise ConfigError(f"models of the family {family.name} take no embeddings")
    try:
        return family.embedding_width(checkpoint)
    except KeyError as error:
        raise ConfigError(f"{checkpoint.path}/config.json lacks {error}, the language model's hidden size") from error
