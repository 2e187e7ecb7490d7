"""What is known of a medium before it is decoded, from its header and the checkpoint's files."""

from __future__ import annotations

import math
from dataclasses import dataclass

from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, ConfigError, MediaMissing, UnsupportedMedia
from triptych.contracts.media import DecodableMedium, Metadata, Numbers, Picture, Sound, Video
from triptych.media.errors import UNSUPPORTED, by_content, problem
from triptych.media.formats.audio import SAMPLE_BYTES, resampled_length
from triptych.media.formats.inspect import Facts, inspect
from triptych.media.formats.sniff import PIXEL_BYTES
from triptych.media.formats.video import RGB_BYTES
from triptych.models.base import Checkpoint, ModelFamily, Pictures

PATCH_BYTES = 3 * 2 * 16 * 16 * 4
"""Memory of a preprocessed patch: channels, frames, pixels (of the largest that is known), float32."""


_POSITIONS, _MEL_BINS = 1500, 128
"""Defaults of transformers' Qwen2AudioEncoderConfig."""


@dataclass(frozen=True)
class Plan:
    """What a medium will become."""

    shape: tuple[int, ...]
    """[tokens, hidden] of its embedding, or [frames, height, width, 3]."""
    metadata: Metadata
    patches: int
    """What the vision tower works on, or the positions of an audio tower: its cost in a batch."""
    memory_bytes: int
    """Decoded and preprocessed."""


def plan_medium(medium: DecodableMedium, limits: MediaLimits, family: ModelFamily, checkpoint: Checkpoint) -> Plan:
    """From the medium's own header; believes nothing that the medium states. Blocks as ``media.formats.inspect`` does.

    Raises as ``check`` and ``plan_of`` do, and for what ``limits`` refuse.
    """
    check(medium, family)
    return plan_of(medium, inspect(medium.kind, medium.data, limits, by_content(medium)), family, checkpoint)


def check(medium: DecodableMedium, family: ModelFamily) -> None:
    """Raises MediaMissing without data, and UnsupportedMedia for a kind that the model does not take."""
    if medium.kind not in family.media:
        needed = " or ".join(family.media)
        raise problem(UnsupportedMedia, by_content(medium), UNSUPPORTED, f"{needed} is needed here, not {medium.kind}")
    if not medium.data:
        raise MediaMissing(f"medium {medium.content_hash} came without its data")


def plan_of(medium: DecodableMedium, facts: Facts, family: ModelFamily, checkpoint: Checkpoint) -> Plan:
    """With the ``facts`` that ``media.formats.inspect`` gives. Raises BadRequest for what this model refuses."""
    try:
        match medium:
            case Picture():
                return plan_size(facts["width"], facts["height"], family, checkpoint)
            case Video() if medium.kind in family.by_frames:
                return plan_frames(facts["width"], facts["height"], len(medium.frame_indices))
            case Video():
                return plan_video(facts, medium.frame_indices, family, checkpoint)
            case Sound():
                return plan_sound(facts["num_samples"], facts["sample_rate"], family, checkpoint)
    except ValueError as error:
        raise problem(BadRequest, by_content(medium), UNSUPPORTED, str(error)) from None


def plan_size(width: int, height: int, family: ModelFamily, checkpoint: Checkpoint) -> Plan:
    """For a picture of ``width`` x ``height`` pixels. Raises ValueError for a shape that the model refuses."""
    modality = family.media["image"]
    picture = Picture(content_hash="", width=width, height=height)
    tokens = modality.tokens(checkpoint, picture)
    metadata = modality.metadata(checkpoint, picture)
    if isinstance(modality, Pictures) and modality.patches is not None:
        patches = modality.patches(checkpoint, picture)
    else:
        patches = _patches(metadata.get("image_grid_thw", (tokens,)))
    memory_bytes = width * height * PIXEL_BYTES + patches * PATCH_BYTES
    return Plan((tokens, width_of(family, checkpoint)), metadata, patches, memory_bytes)


def plan_video(facts: Facts, frame_indices: tuple[int, ...], family: ModelFamily, checkpoint: Checkpoint) -> Plan:
    """For the chosen frames of a video. Raises ValueError for what the model refuses."""
    if not frame_indices:
        raise ValueError("it is not known which frames of this video are meant")
    modality = family.media["video"]
    film = Video(content_hash="", frame_indices=frame_indices, **facts)
    metadata = modality.metadata(checkpoint, film)
    patches = _patches(metadata["video_grid_thw"])
    memory_bytes = len(frame_indices) * film.width * film.height * RGB_BYTES + patches * PATCH_BYTES
    return Plan((modality.tokens(checkpoint, film), width_of(family, checkpoint)), metadata, patches, memory_bytes)


def plan_frames(width: int, height: int, frames: int) -> Plan:
    """For a video that is handed over as so many decoded frames: nothing is made of them here."""
    return Plan((frames, height, width, 3), {}, 0, frames * width * height * RGB_BYTES)


def _patches(grid: Numbers) -> int:
    return int(math.prod(grid))


def plan_sound(samples: int, rate: int, family: ModelFamily, checkpoint: Checkpoint) -> Plan:
    """For a sound of ``samples`` at ``rate`` Hz. Raises ValueError for a length that the model refuses.

    Its cost is that of the longest one: the audio tower pads.
    """
    modality = family.media["audio"]
    sound = Sound(content_hash="", num_samples=samples, sample_rate=rate)
    tokens = modality.tokens(checkpoint, sound)
    config = checkpoint.config.get("audio_config") or {}
    positions = int(config.get("max_source_positions") or _POSITIONS)
    features = 2 * positions * int(config.get("num_mel_bins") or _MEL_BINS)  # two frames become a position
    heard = resampled_length(samples, rate, modality.settings(checkpoint)["decode_rate"])
    memory_bytes = (heard + features) * SAMPLE_BYTES
    return Plan((tokens, width_of(family, checkpoint)), {}, positions, memory_bytes)


def width_of(family: ModelFamily, checkpoint: Checkpoint) -> int:
    """Values a token. Raises ConfigError where the family takes no embeddings, or the config does not say."""
    if family.embedding_width is None:
        raise ConfigError(f"models of the family {family.name} take no embeddings")
    try:
        return family.embedding_width(checkpoint)
    except KeyError as error:
        raise ConfigError(f"{checkpoint.path}/config.json lacks {error}, the language model's hidden size") from error
