"""What the encoder engine knows of a video before it decodes it."""

from __future__ import annotations

import pytest

pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")

from support.videos import sound_only, video
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, MediaMissing, TriptychError, UnsupportedMedia
from triptych.contracts.media import Video
from triptych.demo import MODEL_DIR
from triptych.engines.encoder.plan import plan_medium
from triptych.models.base import Checkpoint
from triptych.models.registry import family_of, load_checkpoint

CHECKPOINT = load_checkpoint(str(MODEL_DIR))
DATA = video(64, 64, frames=12)


def plan(checkpoint: Checkpoint = CHECKPOINT, **fields):
    settings = {"data": DATA, "frame_indices": (0, 3, 6, 9), **fields}
    medium = Video(content_hash="x", format="MP4", **settings)
    return plan_medium(medium, MediaLimits(), family_of(checkpoint), checkpoint)


def test_a_video_is_planned_by_its_chosen_frames():
    four, three = plan(), plan(frame_indices=(0, 3, 6))
    assert four.metadata == {"video_grid_thw": (2, 8, 8)}
    assert (four.shape, four.patches) == ((32, 128), 128)
    assert three.shape == four.shape, "the last frame fills its step"
    assert four.memory_bytes - three.memory_bytes == 64 * 64 * 3
    assert plan(width=9999, height=2).metadata == four.metadata, "the size that it states is not believed"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"data": b""}, MediaMissing),
        ({"data": sound_only()}, BadRequest),
        ({"data": b"AAAA"}, UnsupportedMedia),
        ({"frame_indices": ()}, BadRequest),
    ],
    ids=["no data", "no video", "no file", "no frames"],
)
def test_what_cannot_be_planned(fields, error):
    with pytest.raises(error):
        plan(**fields)


def test_a_model_of_pictures_takes_none():
    vision = {"model_type": "clip_vision_model"}
    older = Checkpoint("x", {**CHECKPOINT.config, "model_type": "llava", "vision_config": vision})
    with pytest.raises(TriptychError, match="image is needed here, not video"):
        plan(older)


def test_how_long_a_step_is_goes_by_the_file_itself():
    newer = Checkpoint("x", {**CHECKPOINT.config, "model_type": "qwen2_5_vl"}, video=CHECKPOINT.video)
    expected = {"video_grid_thw": (2, 8, 8), "second_per_grid_ts": (0.75,)}
    assert plan(newer).metadata == expected, "twelve frames at eight a second, of which four are seen"
    assert plan(newer, num_frames=999, fps=1.0).metadata == expected


def test_qwen3_vl_takes_a_wider_embedding():
    config = {**CHECKPOINT.config, "model_type": "qwen3_vl"}
    config["vision_config"] = {"patch_size": 16, "spatial_merge_size": 2, "deepstack_visual_indexes": [0, 1]}
    size = {"shortest_edge": 4096, "longest_edge": 64 * 64 * 4}
    made = plan(Checkpoint("x", config, video={"size": size}))
    assert made.metadata == {"video_grid_thw": (2, 4, 4)}
    assert (made.shape, made.patches) == ((8, 3 * 128), 32)
