"""Describes Qwen3-VL, which takes pictures as Qwen2-VL does, and gives each temporal step of a video its own tokens.

The time of each step stands in the prompt as text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from triptych.contracts.media import MAX_NUMBERS, Numbers, PrecomputedEmbedding, Video
from triptych.models.base import Checkpoint, Expansion, ModelFamily, Pictures, Tokenise, Videos
from triptych.models.precomputed import Steps, Times, grid_rule
from triptych.models.qwen_vl import (
    check_timing,
    grid,
    image_metadata,
    image_tokens,
    merge_size,
    temporal_patch,
    video_merge_size,
    vision_config,
)

# Defaults of transformers 5.19, for checkpoints that leave them out: Qwen3VLConfig, Qwen3VLVisionConfig.
_IMAGE_TOKEN, _VIDEO_TOKEN, _VISION_START, _VISION_END = 151_655, 151_656, 151_652, 151_653
_DEEPSTACK_LAYERS = (8, 16, 24)

# Defaults of transformers' Qwen3VLVideoProcessor. The pixels are those of all frames together.
_PATCH = 16
_FPS = 2
_MIN_FRAMES, _MAX_FRAMES = 4, 768
_MIN_PIXELS, _MAX_PIXELS = 128 * 32 * 32, 32 * 32 * 768
_MAX_TOKENS_A_FRAME = 768
_MAX_ASPECT_RATIO = 200

_LATEST_S = 1_000_000
"""Latest time of a precomputed video in seconds; the prompt contains it with all its digits."""


def frame_indices(checkpoint: Checkpoint, frames: int, fps: float) -> tuple[int, ...]:
    """Returns which of a video's ``frames`` the model sees: evenly spread ones from the first to the last.

    The rule is ``sample_frames`` of transformers' Qwen3VLVideoProcessor, in its arithmetic, roundings included; but
    no frame is seen twice where it would ask for more frames than there are.
    """
    settings = checkpoint.video
    wanted = settings.get("num_frames")
    if not wanted:
        rate = settings.get("fps", _FPS)
        wanted = max(int(frames / fps * rate) if rate is not None else frames, _stated(checkpoint, "min_frames"))
        wanted = min(wanted, _stated(checkpoint, "max_frames"))
    count = min(int(wanted), frames)
    if count < 2:
        return (0,)
    step = (frames - 1) / (count - 1)
    return (*(round(index * step) for index in range(count - 1)), frames - 1)


def _stated(checkpoint: Checkpoint, name: str) -> int:
    return int(checkpoint.video.get(name) or {"min_frames": _MIN_FRAMES, "max_frames": _MAX_FRAMES}[name])


def video_grid(checkpoint: Checkpoint, frames: int, width: int, height: int) -> tuple[int, int, int]:
    """Returns (steps in time, rows, columns) of the patches of ``frames`` frames that the model sees, before merging.

    The rule is that of transformers' Qwen3VLVideoProcessor: the limits on pixels hold for all frames together, and the
    last frame is repeated to fill a patch. Raises ValueError for an aspect ratio or a number of frames that it refuses.
    """
    settings = checkpoint.video
    patch = int(settings.get("patch_size") or vision_config(checkpoint).get("patch_size") or _PATCH)
    factor = patch * video_merge_size(checkpoint)
    span = temporal_patch(checkpoint)
    if frames < span:
        raise ValueError(f"a video needs at least {span} frames for this model")
    size = settings.get("size") or {}
    low, high = int(size.get("shortest_edge") or _MIN_PIXELS), int(size.get("longest_edge") or _MAX_PIXELS)
    if settings.get("cap_pixels_per_frame"):
        max_frame_pixels = int(settings.get("max_video_tokens") or _MAX_TOKENS_A_FRAME) * factor**2
        high = max(min(max_frame_pixels, high // frames), int(low * 1.05)) * frames
    high_px, wide_px = resized(frames, height, width, span, factor, low, high)
    return -(-frames // span), high_px // patch, wide_px // patch


def resized(
    frames: int, height: int, width: int, span: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Returns height and width in pixels of each frame after the video processor's resizing, as multiples of
    ``factor``.

    The rule is that of Qwen2-VL's pictures with the frames as a third side, which counts as a multiple of ``span``;
    frames smaller than ``factor`` are enlarged first. Its rounding decides the token count, so it is kept, and tests
    compare the two over many sizes. Raises ValueError for an aspect ratio that it refuses.
    """
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > _MAX_ASPECT_RATIO:
        raise ValueError(f"the longer side may be at most {_MAX_ASPECT_RATIO} times the shorter one")
    cells = [round(side / factor) for side in (height, width)]
    volume = round(frames / span) * span * cells[0] * cells[1] * factor**2
    if volume > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        cells = [max(1, math.floor(side / shrink / factor)) for side in (height, width)]
    elif volume < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        cells = [math.ceil(side * grow / factor) for side in (height, width)]
    return cells[0] * factor, cells[1] * factor


def _grid_of(checkpoint: Checkpoint, medium: Video) -> tuple[int, int, int]:
    return video_grid(checkpoint, len(medium.frame_indices), medium.width, medium.height)


def video_tokens(checkpoint: Checkpoint, medium: Video) -> int:
    """Returns the rows of a video's embedding: its patches divided by the square of the merge size.

    Raises as ``video_grid`` does.
    """
    return math.prod(_grid_of(checkpoint, medium)) // video_merge_size(checkpoint) ** 2


def timestamps(checkpoint: Checkpoint, medium: Video) -> list[float]:
    """Returns the middle of each temporal step in seconds: between its first frame and its last, with the file's last
    frame repeated.

    Raises ValueError if the times are not known.
    """
    check_timing(medium)
    span = temporal_patch(checkpoint)
    indices = list(medium.frame_indices)
    indices += [indices[-1]] * (-len(indices) % span)
    times_s = [index / medium.fps for index in indices]
    return [(times_s[first] + times_s[first + span - 1]) / 2 for first in range(0, len(times_s), span)]


def video_expansion(checkpoint: Checkpoint, medium: Video | PrecomputedEmbedding, tokenise: Tokenise) -> Expansion:
    """Returns ``<0.2 seconds>`` and the tokens of that step between marks of their own, for each temporal step.

    Raises as ``video_grid`` and ``timestamps`` do.
    """
    tokens, times_s = _steps_of(checkpoint, medium)
    token = _token(checkpoint, "video_token_id", _VIDEO_TOKEN)
    start = _token(checkpoint, "vision_start_token_id", _VISION_START)
    end = _token(checkpoint, "vision_end_token_id", _VISION_END)
    of_step = (start, *(token,) * tokens, end)
    ids: list[int] = []
    for time_s in times_s:
        ids += tokenise(f"<{time_s:.1f} seconds>")
        ids += of_step
    return Expansion(tuple(ids), token)


def _steps_of(checkpoint: Checkpoint, medium: Video | PrecomputedEmbedding) -> tuple[int, Sequence[float]]:
    """Returns (tokens of each temporal step, the seconds at the middle of each)."""
    if isinstance(medium, PrecomputedEmbedding):
        times_s = medium.metadata["timestamps"]
        return medium.shape[0] // len(times_s), times_s
    _, rows, columns = _grid_of(checkpoint, medium)
    return rows * columns // video_merge_size(checkpoint) ** 2, timestamps(checkpoint, medium)


def _wanted_times(checkpoint: Checkpoint, steps: Steps) -> str:
    return f"{steps.number} numbers, the seconds at the middle of each step in time: from 0 to {_LATEST_S}, in order"


def _are_times(checkpoint: Checkpoint, steps: Steps, values: Numbers) -> bool:
    ordered = (0, *values, _LATEST_S)
    return len(values) == steps.number and all(time_s <= next_s for time_s, next_s in itertools.pairwise(ordered))


def _token(checkpoint: Checkpoint, name: str, default: int) -> int:
    return int(checkpoint.config.get(name, default))


def embedding_width(checkpoint: Checkpoint) -> int:
    """Returns the width of an embedding: the language model's hidden size for the last layer, and again for each layer
    whose features are added later (deepstack). Raises KeyError.
    """
    layers = vision_config(checkpoint).get("deepstack_visual_indexes", _DEEPSTACK_LAYERS)
    return int(checkpoint.text_config["hidden_size"]) * (1 + len(layers))


FAMILY = ModelFamily(
    name="qwen3-vl",
    model_types=("qwen3_vl", "qwen3_vl_moe"),
    pictures=Pictures(
        placeholder=lambda checkpoint: _token(checkpoint, "image_token_id", _IMAGE_TOKEN),
        text="<|vision_start|><|image_pad|><|vision_end|>",
        tokens=lambda checkpoint, medium: image_tokens(checkpoint, medium.width, medium.height),
        metadata=lambda checkpoint, medium: image_metadata(checkpoint, medium.width, medium.height),
        precomputed=grid_rule("image_grid_thw", merge_size, max_steps=1),
        patches=lambda checkpoint, medium: math.prod(grid(checkpoint, medium.width, medium.height)),
    ),
    videos=Videos(
        placeholder=lambda checkpoint: _token(checkpoint, "video_token_id", _VIDEO_TOKEN),
        text="<|vision_start|><|video_pad|><|vision_end|>",
        tokens=video_tokens,
        metadata=lambda checkpoint, medium: {"video_grid_thw": _grid_of(checkpoint, medium)},
        frame_indices=frame_indices,
        patches=lambda checkpoint, medium: math.prod(_grid_of(checkpoint, medium)),
        expansion=video_expansion,
        precomputed_expansion=video_expansion,
        precomputed=grid_rule(
            "video_grid_thw",
            video_merge_size,
            Times("timestamps", _wanted_times, _are_times, for_model=False),
            max_steps=MAX_NUMBERS,
        ),
    ),
    embedding_width=embedding_width,
)
