"""What is known of a LLaVA-NeXT-Video checkpoint, against transformers' own rules."""

import random

import pytest

from triptych.contracts.media import Video
from triptych.models.base import Checkpoint
from triptych.models.llava_next_video import FAMILY, frame_indices, video_tokens
from triptych.models.registry import family_of

# As the published 7B model has it.
PUBLISHED = {
    "model_type": "llava_next_video",
    "image_token_index": 32001,
    "video_token_index": 32000,
    "text_config": {"model_type": "llama", "max_position_embeddings": 16_384},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "patch_size": 14},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "spatial_pool_stride": 2,
}


def checkpoint(video=None, **changes):
    return Checkpoint("x", {**PUBLISHED, **changes}, video=video or {})


def film(frames, width=640, height=480):
    indices = tuple(range(frames))
    return Video(content_hash="", width=width, height=height, frame_indices=indices)


def test_the_published_model():
    assert family_of(checkpoint()) is FAMILY
    assert FAMILY.modalities == FAMILY.by_frames == ("video",)
    assert FAMILY.media["video"].placeholder(checkpoint()) == 32000
    assert FAMILY.embedding_width is None
    assert "no embeddings" in FAMILY.no_embeddings
    assert video_tokens(checkpoint(), film(8)) == 8 * 144
    assert video_tokens(checkpoint(), film(8, 20, 3000)) == 8 * 144


def test_tokens_are_those_of_the_models_own_processor():
    transformers = pytest.importorskip("transformers")
    np = pytest.importorskip("numpy")
    processor = object.__new__(transformers.LlavaNextVideoProcessor)
    processor.patch_size, processor.video_token = 14, "v"
    for side in (196, 224, 336):
        vision = {**PUBLISHED["vision_config"], "image_size": side}
        for frames in (1, 2, 7, 32):
            pixels = {"pixel_values_videos": [np.broadcast_to(np.float32(0), (frames, 3, side, side))]}
            text = processor.replace_video_token(pixels, 0)
            assert video_tokens(checkpoint(vision_config=vision), film(frames)) == len(text)


def test_frames_are_those_that_transformers_samples():
    utils = pytest.importorskip("transformers.video_utils")
    rng = random.Random(4)
    for _ in range(300):
        frames, fps = rng.randint(1, 2000), rng.choice([8.0, 24.0, 25.0, 29.97])
        metadata = utils.VideoMetadata(total_num_frames=frames, fps=fps)
        count = rng.randint(1, frames)
        theirs = utils.default_sample_indices_fn(metadata, num_frames=count)
        assert frame_indices(checkpoint({"num_frames": count}), frames, fps) == tuple(theirs)
        if int(frames / fps) >= 1:
            theirs = utils.default_sample_indices_fn(metadata, fps=1.0)
            assert frame_indices(checkpoint({"fps": 1.0}), frames, fps) == tuple(theirs)


def test_where_the_checkpoint_does_not_say_how_many():
    assert len(frame_indices(checkpoint(), 500, 25.0)) == 32
    assert frame_indices(checkpoint(), 3, 25.0) == (0, 1, 2), "no more than there are"
    short = checkpoint(text_config={"model_type": "llama", "max_position_embeddings": 4096})
    assert len(frame_indices(short, 500, 25.0)) == 4096 // 2 // 144, "room for a question and its answer"
    assert len(frame_indices(checkpoint({"num_frames": 8}), 5, 25.0)) == 5
    assert frame_indices(checkpoint({"fps": 1.0}), 5, 25.0) == (0,), "at least one"


def test_patches_that_cannot_be_pooled_evenly_are_refused():
    """vLLM reserves places for those left over, which its model then drops."""
    vision = {**PUBLISHED["vision_config"], "image_size": 378}
    with pytest.raises(ValueError, match="27 patches a side cannot be pooled by 2"):
        video_tokens(checkpoint(vision_config=vision), film(8))


def test_the_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    whole, bare = transformers.LlavaNextVideoConfig(), Checkpoint("x", {"model_type": "llava_next_video"})
    assert FAMILY.media["video"].placeholder(bare) == whole.video_token_index
    side = whole.vision_config.image_size // whole.vision_config.patch_size // whole.spatial_pool_stride
    assert video_tokens(bare, film(3)) == 3 * side * side
