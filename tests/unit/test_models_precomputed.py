"""What each family asks of a medium that comes as its embedding."""

import pytest
from benchmarks.audio_model import audio_checkpoint

from triptych.contracts.request import Medium, Precomputed
from triptych.demo import MODEL_DIR
from triptych.models.base import Checkpoint
from triptych.models.precomputed import metadata_of, tokens_of
from triptych.models.registry import family_of, load_checkpoint

WIDTH = 8


def given(kind, rows, **metadata):
    return Medium(
        kind=kind,
        content_hash="x",
        format="SAFETENSORS",
        metadata=metadata,
        precomputed=Precomputed((rows, WIDTH), "float32"),
    )


def facts(checkpoint, medium):
    """(tokens, metadata)."""
    modality = family_of(checkpoint).media[medium.kind]
    return tokens_of(modality, checkpoint, medium), metadata_of(modality, checkpoint, medium)


def refused(checkpoint, medium):
    modality = family_of(checkpoint).media[medium.kind]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are the caller's to check
        tokens_of(modality, checkpoint, medium)
    with pytest.raises(ValueError):  # noqa: PT011
        metadata_of(modality, checkpoint, medium)
    return str(caught.value)


@pytest.fixture(scope="module")
def qwen():
    return load_checkpoint(str(MODEL_DIR))


@pytest.mark.parametrize("sides", [(1, 4, 8), (1, 8, 4), (1, 2, 16), (1, 16, 2)])
def test_a_picture_of_qwen_vl_is_what_its_grid_makes(qwen, sides):
    assert facts(qwen, given("image", 8, image_grid_thw=sides)) == (8, {"image_grid_thw": sides})


@pytest.mark.parametrize("sides", [(1, 4, 8), (2, 4, 4), (8, 2, 2)])
def test_a_video_may_have_steps_in_time(qwen, sides):
    assert facts(qwen, given("video", 8, video_grid_thw=sides)) == (8, {"video_grid_thw": sides})


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "without 'image_grid_thw'"),
        ({"video_grid_thw": (1, 4, 8)}, "'video_grid_thw'; this model wants with it: image_grid_thw"),
        ({"image_grid_thw": (1, 4, 8), "second_per_grid_ts": (1,)}, "'second_per_grid_ts'"),
        ({"image_grid_thw": (4, 8)}, "three positive whole numbers"),
        ({"image_grid_thw": (1, 1, 4, 8)}, "three positive whole numbers"),
        ({"image_grid_thw": (0, 4, 8)}, "three positive whole numbers"),
        ({"image_grid_thw": (1, -4, -8)}, "three positive whole numbers"),
        ({"image_grid_thw": (2, 4, 4)}, "2 steps in time; at most 1"),
        ({"image_grid_thw": (1, 1, 32)}, "must be multiples of 2"),
        ({"image_grid_thw": (1, 4, 9)}, "must be multiples of 2"),
        ({"image_grid_thw": (1, 4, 4)}, "makes 4 tokens, but the embedding has 8"),
        ({"image_grid_thw": (1, 2**62, 2**62)}, "but the embedding has 8"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(qwen, metadata, words):
    assert words in refused(qwen, given("image", 8, **metadata))


LLAVA = {
    "model_type": "llava",
    "vision_config": {"model_type": "clip_vision_model", "image_size": 84, "patch_size": 14},
}


def test_a_picture_of_llava_has_the_tokens_of_every_picture():
    llava = Checkpoint("", LLAVA)
    assert facts(llava, given("image", 36)) == (36, {})
    for rows in (1, 35, 37):
        assert f"has {rows} tokens; this model takes 36" in refused(llava, given("image", rows))
    assert "wants with it: nothing" in refused(llava, given("image", 36, image_grid_thw=(1, 12, 12)))


def test_a_sound_of_qwen2_audio_is_at_most_the_longest_one(tmp_path):
    checkpoint = load_checkpoint(str(audio_checkpoint(tmp_path / "m")))
    for rows in (1, 25, 750):
        assert facts(checkpoint, given("audio", rows)) == (rows, {})
    for rows in (0, 751):
        assert f"has {rows} tokens; this model takes 1 to 750" in refused(checkpoint, given("audio", rows))


def test_a_family_that_takes_none_says_so(qwen):
    from dataclasses import replace

    modality = replace(family_of(qwen).media["image"], precomputed=None)
    with pytest.raises(ValueError, match="takes no precomputed embeddings of kind image"):
        tokens_of(modality, qwen, given("image", 8, image_grid_thw=(1, 4, 8)))
