"""Describes Qwen2-VL and Qwen2.5-VL, which cut pictures and videos into patches at nearly their own resolution."""

from __future__ import annotations

import math
from dataclasses import replace

from triptych.contracts.media import Metadata, Numbers, PrecomputedEmbedding, Video
from triptych.models.base import Checkpoint, Json, ModelFamily, Pictures, Videos
from triptych.models.precomputed import Steps, Times, grid_rule, metadata_of

# Defaults of transformers' Qwen2VLImageProcessor, for checkpoints that leave them out.
_MIN_PIXELS = 56 * 56
_MAX_PIXELS = 28 * 28 * 1280
_MAX_ASPECT_RATIO = 200

# Defaults of transformers' Qwen2VLVideoProcessor. It has none for the frame rate, whose default is that of the model's
# own examples (qwen-vl-utils).
_VIDEO_MIN_PIXELS = 128 * 28 * 28
_VIDEO_MAX_PIXELS = 28 * 28 * 768
_VIDEO_FPS = 2.0
_VIDEO_MIN_FRAMES = 4
_VIDEO_MAX_FRAMES = 768
_VIDEO_MAX_TOKENS = 128_000

_TOKENS_PER_SECOND = 4
"""M-RoPE positions of a second, by default of transformers' Qwen2_5_VLVisionConfig."""
_POSITIONS_A_TOKEN = 3
"""Maximum number of positions a token of a precomputed video (``models.mrope_budget`` limits all media)."""


def resized(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Returns height and width in pixels after the image processor's resizing.

    Both become multiples of ``factor``, their product lies in [``min_pixels``, ``max_pixels``] and the aspect
    ratio stays as close as that allows. The rule is "smart resize" of Qwen2-VL (arXiv:2409.12191) as
    transformers applies it; its rounding and the order of its divisions decide the token count, so they are
    kept, and tests compare the two over many sizes.
    """
    sides = (height, width)
    cells = [round(side / factor) for side in sides]
    area = cells[0] * cells[1] * factor**2
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        cells = [max(1, math.floor(side / shrink / factor)) for side in sides]
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        cells = [math.ceil(side * grow / factor) for side in sides]
    return cells[0] * factor, cells[1] * factor


def _pixel_bounds(checkpoint: Checkpoint) -> tuple[int, int]:
    """Returns (min, max) pixels, which newer checkpoints hold under ``size``."""
    settings = checkpoint.preprocessor
    size = settings.get("size") or {}
    low = settings.get("min_pixels") or size.get("shortest_edge") or _MIN_PIXELS
    high = settings.get("max_pixels") or size.get("longest_edge") or _MAX_PIXELS
    return int(low), int(high)


def vision_config(checkpoint: Checkpoint) -> Json:
    return checkpoint.config.get("vision_config") or {}


def merge_size(checkpoint: Checkpoint) -> int:
    """Returns the number of patches, along each side, that become one token."""
    return int(checkpoint.preprocessor.get("merge_size") or vision_config(checkpoint).get("spatial_merge_size") or 2)


def grid(checkpoint: Checkpoint, width: int, height: int) -> tuple[int, int]:
    """Returns the rows and columns of patches of a picture of ``width`` x ``height`` pixels, before merging.

    Raises ValueError for an aspect ratio that the image processor refuses.
    """
    if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"the longer side may be at most {_MAX_ASPECT_RATIO} times the shorter one")
    patch = int(checkpoint.preprocessor.get("patch_size") or vision_config(checkpoint).get("patch_size") or 14)
    high, wide = resized(height, width, patch * merge_size(checkpoint), *_pixel_bounds(checkpoint))
    return high // patch, wide // patch


def image_tokens(checkpoint: Checkpoint, width: int, height: int) -> int:
    """Returns the tokens of a picture: its patches divided by the square of the merge size. Raises as ``grid`` does."""
    rows, columns = grid(checkpoint, width, height)
    return rows * columns // merge_size(checkpoint) ** 2


def image_metadata(checkpoint: Checkpoint, width: int, height: int) -> Metadata:
    """Returns ``image_grid_thw``: one frame, rows and columns of patches before merging. Raises as ``grid`` does."""
    return {"image_grid_thw": (1, *grid(checkpoint, width, height))}


def frame_indices(checkpoint: Checkpoint, frames: int, fps: float) -> tuple[int, ...]:
    """Returns which of a video's ``frames`` the model sees: evenly spread ones, ``fps`` of the checkpoint a second.

    Their number lies between ``min_frames`` and ``max_frames``, is a multiple of the frames that one patch spans,
    and is no more than there are; a video of less than one patch is seen whole. The rule is ``sample_frames`` of
    transformers' Qwen2VLVideoProcessor, in exact arithmetic where that has float32.
    """
    settings = checkpoint.video
    span = temporal_patch(checkpoint)
    stated = settings.get("num_frames")
    if stated:
        count = min(round(stated / span) * span, frames)
    else:
        max_frames = min(int(settings.get("max_frames") or _VIDEO_MAX_FRAMES), frames) // span * span
        wanted = frames / fps * float(settings.get("fps") or _VIDEO_FPS)
        wanted = min(max(wanted, int(settings.get("min_frames") or _VIDEO_MIN_FRAMES)), max_frames)
        count = math.floor(wanted / span) * span
    if count < 1:
        return tuple(range(frames))
    return tuple(index * frames // count for index in range(count))


def temporal_patch(checkpoint: Checkpoint) -> int:
    """Returns the number of frames that one patch spans."""
    return int(checkpoint.video.get("temporal_patch_size") or vision_config(checkpoint).get("temporal_patch_size") or 2)


def video_grid(checkpoint: Checkpoint, frames: int, width: int, height: int) -> tuple[int, int, int]:
    """Returns (steps in time, rows, columns) of the patches of ``frames`` frames that the model sees, before merging.

    The rule is that of transformers' Qwen2VLVideoProcessor: the last frame is repeated to fill a patch, and the limits
    on pixels differ from those of pictures. Raises ValueError for an aspect ratio that it refuses.
    """
    if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"the longer side may be at most {_MAX_ASPECT_RATIO} times the shorter one")
    settings = checkpoint.video
    patch = int(settings.get("patch_size") or vision_config(checkpoint).get("patch_size") or 14)
    factor = patch * video_merge_size(checkpoint)
    span = temporal_patch(checkpoint)
    size = settings.get("size") or {}
    low = int(settings.get("min_pixels") or size.get("shortest_edge") or _VIDEO_MIN_PIXELS)
    high = int(settings.get("max_pixels") or size.get("longest_edge") or _VIDEO_MAX_PIXELS)
    if settings.get("cap_pixels_per_frame"):
        total = int(int(settings.get("max_video_tokens") or _VIDEO_MAX_TOKENS) * factor**2 * 0.9)
        high = max(min(high, total * span // frames), int(low * 1.05))
    high_px, wide_px = resized(height, width, factor, low, high)
    return -(-frames // span), high_px // patch, wide_px // patch


def video_merge_size(checkpoint: Checkpoint) -> int:
    """Returns the number of patches of a video, along each side, that become one token."""
    return int(checkpoint.video.get("merge_size") or vision_config(checkpoint).get("spatial_merge_size") or 2)


def _grid_of(checkpoint: Checkpoint, medium: Video) -> tuple[int, int, int]:
    return video_grid(checkpoint, len(medium.frame_indices), medium.width, medium.height)


def video_tokens(checkpoint: Checkpoint, medium: Video) -> int:
    """Returns the tokens of a video: its patches, divided by the square of the merge size. Raises as ``video_grid``."""
    return math.prod(_grid_of(checkpoint, medium)) // video_merge_size(checkpoint) ** 2


def embedding_width(checkpoint: Checkpoint) -> int:
    """Returns the language model's hidden size, which the last layer of the vision part projects to.

    Raises KeyError.
    """
    return int(checkpoint.text_config["hidden_size"])


_PICTURES = Pictures(
    placeholder=lambda checkpoint: int(checkpoint.config["image_token_id"]),
    text="<|vision_start|><|image_pad|><|vision_end|>",
    tokens=lambda checkpoint, medium: image_tokens(checkpoint, medium.width, medium.height),
    metadata=lambda checkpoint, medium: image_metadata(checkpoint, medium.width, medium.height),
    precomputed=grid_rule("image_grid_thw", merge_size, max_steps=1),
    patches=lambda checkpoint, medium: math.prod(grid(checkpoint, medium.width, medium.height)),
)
_VIDEOS = Videos(
    placeholder=lambda checkpoint: int(checkpoint.config["video_token_id"]),
    text="<|vision_start|><|video_pad|><|vision_end|>",
    tokens=video_tokens,
    metadata=lambda checkpoint, medium: {"video_grid_thw": _grid_of(checkpoint, medium)},
    precomputed=grid_rule("video_grid_thw", video_merge_size),
    patches=lambda checkpoint, medium: math.prod(_grid_of(checkpoint, medium)),
    frame_indices=frame_indices,
)

FAMILY = ModelFamily(
    name="qwen-vl",
    model_types=("qwen2_vl",),
    pictures=_PICTURES,
    videos=_VIDEOS,
    embedding_width=embedding_width,
)


def _timed_metadata(checkpoint: Checkpoint, medium: Video) -> Metadata:
    """Returns the facts of a Qwen2.5-VL video. Time counts in seconds, not in steps: a step is as long as its frames.

    Raises as ``video_grid`` does, and ValueError if the frame rate of the video is not known.
    """
    grid = _grid_of(checkpoint, medium)
    check_timing(medium)
    seen_a_second = len(medium.frame_indices) / medium.num_frames * medium.fps
    return {"video_grid_thw": grid, "second_per_grid_ts": (temporal_patch(checkpoint) / seen_a_second,)}


def check_timing(medium: Video) -> None:
    """Checks a video's times. Raises ValueError if the times of its frames are not known."""
    if not (0 < medium.fps < math.inf and medium.frame_indices and medium.frame_indices[-1] < medium.num_frames):
        raise ValueError("the times of this video's frames are not known")


def _positions(checkpoint: Checkpoint, medium: Video | PrecomputedEmbedding) -> int:
    """Returns the M-RoPE positions that a Qwen2.5-VL video uses beyond one for each token.

    The last temporal step begins at floor((steps - 1) * seconds a step * ``tokens_per_second``).
    """
    metadata = metadata_of(_TIMED_VIDEOS, checkpoint, medium)
    (number, high, wide), (step_s,) = metadata["video_grid_thw"], metadata["second_per_grid_ts"]
    merge = video_merge_size(checkpoint)
    last = math.floor((number - 1) * step_s * _positions_a_second(checkpoint))
    tokens = int(number * high * wide) // merge**2
    return max(0, last + 1 - tokens)


def _positions_a_second(checkpoint: Checkpoint) -> float:
    return float(vision_config(checkpoint).get("tokens_per_second", _TOKENS_PER_SECOND))


def _longest_step_s(checkpoint: Checkpoint, steps: Steps) -> float:
    """Returns the longest allowed step of a precomputed video in seconds.

    At this length a token has ``_POSITIONS_A_TOKEN`` positions.
    """
    return _POSITIONS_A_TOKEN * steps.tokens / _positions_a_second(checkpoint)


def _wanted_step(checkpoint: Checkpoint, steps: Steps) -> str:
    at_most = f"for its {steps.tokens} tokens, at most {_longest_step_s(checkpoint, steps):g}"
    return f"one number, the seconds of a step in time: more than 0 and, {at_most}"


def _is_step(checkpoint: Checkpoint, steps: Steps, values: Numbers) -> bool:
    return len(values) == 1 and 0 < values[0] <= _longest_step_s(checkpoint, steps)


_TIMED_VIDEOS = replace(
    _VIDEOS,
    metadata=_timed_metadata,
    precomputed=grid_rule("video_grid_thw", video_merge_size, Times("second_per_grid_ts", _wanted_step, _is_step)),
    positions=_positions,
)

FAMILY_2_5 = replace(FAMILY, model_types=("qwen2_5_vl",), videos=_TIMED_VIDEOS)
