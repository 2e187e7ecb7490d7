"""Describes LLaVA-NeXT-Video, which sees the frames of a video, each cropped to one size and pooled.

It takes no pictures and no embeddings, because vLLM's model takes neither, though that of transformers takes pictures.
An encode worker hands over the frames.
"""

from __future__ import annotations

from triptych.contracts.media import Video
from triptych.models import llava
from triptych.models.base import Checkpoint, ModelFamily, Videos

# Defaults of transformers' LlavaNextVideoConfig.
_VIDEO_TOKEN = 32000
_POOL_STRIDE = 2

_FRAMES = 32
"""The number of frames if a checkpoint does not state it: as the published models were trained, and as vLLM takes."""


def video_token(checkpoint: Checkpoint) -> int:
    """Returns the placeholder: ``video_token_index``, in newer checkpoints ``video_token_id``."""
    stated = {"video_token_id": _VIDEO_TOKEN, **checkpoint.config}
    return int(stated.get("video_token_index", stated["video_token_id"]))


def frame_tokens(checkpoint: Checkpoint) -> int:
    """Returns the tokens of a frame of any size. Raises ValueError if patches are left over when they are pooled.

    In that case the count of vLLM and that of its model differ, which would end the engine.
    """
    tower = llava.tower(checkpoint)
    patches = int(tower["image_size"]) // int(tower["patch_size"])
    stride = int(checkpoint.config.get("spatial_pool_stride") or _POOL_STRIDE)
    if patches % stride:
        raise ValueError(f"this model cannot be served: {patches} patches a side cannot be pooled by {stride}")
    return (patches // stride) ** 2


def video_tokens(checkpoint: Checkpoint, medium: Video) -> int:
    """Returns the tokens of all frames that the model sees. Raises as ``frame_tokens`` does."""
    return frame_tokens(checkpoint) * len(medium.frame_indices)


def frame_indices(checkpoint: Checkpoint, frames: int, fps: float) -> tuple[int, ...]:
    """Returns which of a video's ``frames`` the model sees: evenly spread ones, at most those that there are.

    Their number is the checkpoint's ``num_frames``, or follows from its ``fps``, by transformers' default rule. Where
    it says neither it is 32, or what half of the context holds.
    """
    settings = checkpoint.video
    if settings.get("num_frames"):
        count = int(settings["num_frames"])
    elif settings.get("fps"):
        count = int(frames / fps * float(settings["fps"]))
    else:
        count = min(_FRAMES, checkpoint.context_length // 2 // frame_tokens(checkpoint) or _FRAMES)
    count = max(1, min(count, frames))
    return tuple(index * frames // count for index in range(count))


FAMILY = ModelFamily(
    name="llava-next-video",
    model_types=("llava_next_video",),
    videos=Videos(
        placeholder=video_token,
        text="<video>",
        tokens=video_tokens,
        frame_indices=frame_indices,
        hand_over="frames",
    ),
    no_embeddings="vLLM takes no embeddings of videos for LLaVA-NeXT-Video",
    towers=llava.FAMILY.towers,
)
