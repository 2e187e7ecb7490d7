"""Plans how a medium is encoded before it is decoded, from its header and the checkpoint's files."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, ConfigError, MediaMissing, UnsupportedMedia
from triptych.contracts.media import DecodableMedium, Metadata, Picture, Sound, Video
from triptych.media.errors import UNSUPPORTED, by_content, problem
from triptych.media.formats.audio import SAMPLE_BYTES, resampled_length
from triptych.media.formats.inspect import Facts, inspect
from triptych.media.formats.sniff import PIXEL_BYTES
from triptych.media.formats.video import RGB_BYTES
from triptych.models.base import Checkpoint, ModelFamily

PATCH_BYTES = 3 * 2 * 16 * 16 * 4
"""Memory of the largest known preprocessed patch: channels, frames, pixels, float32."""


@dataclass(frozen=True)
class Plan:
    """The shape, the cost and the memory of a medium's embedding, known before it is made."""

    shape: tuple[int, ...]
    """The shape: [tokens, hidden] of an embedding, or [frames, height, width, 3]."""
    metadata: Metadata
    patches: int
    """Patches of a vision tower, or positions of an audio tower: the medium's cost in a batch."""
    memory_bytes: int
    """Bytes of the medium while it is decoded and preprocessed."""


def plan_medium(medium: DecodableMedium, limits: MediaLimits, family: ModelFamily, checkpoint: Checkpoint) -> Plan:
    """Plans by the medium's own header, and uses nothing that the request states.

    Blocks as ``media.formats.inspect`` does. Raises as ``check`` and ``plan_of`` do, and for a medium over ``limits``.
    """
    check(medium, family)
    return plan_of(medium, inspect(medium.kind, medium.data, limits, by_content(medium)), family, checkpoint)


def check(medium: DecodableMedium, family: ModelFamily) -> None:
    """Checks a medium. Raises MediaMissing if it has no data, UnsupportedMedia if the model does not take its kind."""
    if medium.kind not in family.media:
        needed = " or ".join(family.media)
        raise problem(UnsupportedMedia, by_content(medium), UNSUPPORTED, f"{needed} is needed here, not {medium.kind}")
    if not medium.data:
        raise MediaMissing(f"medium {medium.content_hash} came without its data")


def plan_of(medium: DecodableMedium, facts: Facts, family: ModelFamily, checkpoint: Checkpoint) -> Plan:
    """Plans by the ``facts`` of ``media.formats.inspect``. Raises BadRequest for a medium that this model refuses."""
    known = msgspec.structs.replace(medium, **facts)
    try:
        return plan_known(known, family, checkpoint)
    except ValueError as error:
        raise problem(BadRequest, by_content(medium), UNSUPPORTED, str(error)) from None


def plan_known(medium: DecodableMedium, family: ModelFamily, checkpoint: Checkpoint) -> Plan:
    """Plans a medium whose facts are true. Raises ValueError for one that the model refuses."""
    if medium.unknown:
        raise ValueError(medium.unknown)
    if isinstance(medium, Video) and medium.kind in family.by_frames:  # nothing is made of the frames here
        frames = (len(medium.frame_indices), medium.height, medium.width, 3)
        return Plan(frames, {}, 0, math.prod(frames))
    modality = family.media[medium.kind]
    cost = modality.cost(checkpoint, medium)
    shape = (modality.tokens(checkpoint, medium), width_of(family, checkpoint))
    memory_bytes = _memory_bytes(medium, cost, family, checkpoint)
    return Plan(shape, modality.metadata(checkpoint, medium), cost, memory_bytes)


def _memory_bytes(medium: DecodableMedium, cost: int, family: ModelFamily, checkpoint: Checkpoint) -> int:
    match medium:
        case Picture():
            return medium.width * medium.height * PIXEL_BYTES + cost * PATCH_BYTES
        case Video():
            return len(medium.frame_indices) * medium.width * medium.height * RGB_BYTES + cost * PATCH_BYTES
        case Sound():
            assert family.sounds is not None
            samples = resampled_length(medium.num_samples, medium.sample_rate, family.sounds.decode_rate(checkpoint))
            return (samples + family.sounds.features(checkpoint)) * SAMPLE_BYTES


def width_of(family: ModelFamily, checkpoint: Checkpoint) -> int:
    """Returns the number of values a token.

    Raises ConfigError if the family takes no embeddings, or if the config does not state it.
    """
    if family.embedding_width is None:
        raise ConfigError(f"models of the family {family.name} take no embeddings")
    try:
        return family.embedding_width(checkpoint)
    except KeyError as error:
        raise ConfigError(f"{checkpoint.path}/config.json lacks {error}, the language model's hidden size") from error
