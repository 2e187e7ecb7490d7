"""What the encoder engine knows of a video before it decodes it."""

from __future__ import annotations

import pytest

pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")

from support.videos import sound_only, video
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, MediaMissing, TriptychError, UnsupportedMedia
from triptych.contracts.request import Medium
from triptych.demo import MODEL_DIR
from triptych.engines.encoder.plan import plan_medium
from triptych.models.base import Checkpoint
from triptych.models.registry import family_of, load_checkpoint

CHECKPOINT = load_checkpoint(str(MODEL_DIR))
DATA = video(64, 64, frames=12)


def plan(checkpoint: Checkpoint = CHECKPOINT, **fields):
    settings = {"data": DATA, "frame_indices": (0, 3, 6, 9), **fields}
    medium = Medium(kind="video", content_hash="x", format="MP4", **settings)
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
    newer = Checkpoint("x", {**CHECKPOINT.config, "model_type": "qwen2_5_vl"})
    with pytest.raises(TriptychError, match="image is needed here, not video"):
        plan(newer)
