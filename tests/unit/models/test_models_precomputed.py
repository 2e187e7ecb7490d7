"""What each family asks of a medium that comes as its embedding."""

import math
import re
from dataclasses import replace

import msgspec
import pytest

from benchmarks.audio_model import audio_checkpoint
from triptych.contracts.media import MAX_NUMBERS, Medium, PrecomputedEmbedding
from triptych.demo import MODEL_DIR
from triptych.models.base import Checkpoint
from triptych.models.precomputed import expansion_of, metadata_of, tokens_of
from triptych.models.registry import family_of, load_checkpoint
from triptych.processor.tokenizer import Tokenizer

WIDTH = 8
ENDLESS = (math.nan, math.inf, -math.inf)


def given(kind, rows, **metadata):
    return PrecomputedEmbedding(
        kind=kind,
        content_hash="x",
        metadata=metadata,
        shape=(rows, WIDTH),
        dtype="float32",
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
        ({"image_grid_thw": (1, 4.0, 8)}, "three positive whole numbers"),
        ({"image_grid_thw": (1, math.nan, 8)}, "three positive whole numbers"),
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


def as_(family, checkpoint, **vision):
    """``checkpoint`` as if it were of ``family``."""
    config = {**checkpoint.config, "model_type": family}
    config["vision_config"] = {**config["vision_config"], **vision}
    return replace(checkpoint, config=config)


@pytest.fixture(scope="module")
def newer(qwen):
    return as_("qwen2_5_vl", qwen, tokens_per_second=2)


@pytest.fixture(scope="module")
def qwen3(qwen):
    return as_("qwen3_vl", qwen, deepstack_visual_indexes=[0, 1])


GRID = {"video_grid_thw": (2, 4, 4)}
"""Of two steps of four tokens."""


@pytest.mark.parametrize("step_s", [0.5, 1, 1e-300, 6.0])
def test_a_video_of_qwen2_5_vl_says_how_long_a_step_is(newer, step_s):
    told = {**GRID, "second_per_grid_ts": (step_s,)}
    tokens, metadata = facts(newer, given("video", 8, **told))
    assert (tokens, metadata) == (8, told)
    assert isinstance(metadata["second_per_grid_ts"][0], float), "the engine puts those of several together"


def test_positions_of_time_stay_within_what_an_engine_keeps_angles_for(newer):
    def longest(checkpoint, sides):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            facts(checkpoint, given("video", math.prod(sides) // 4, video_grid_thw=sides, second_per_grid_ts=(1e9,)))
        return float(str(caught.value).split("at most ")[1].split(",")[0])

    assert longest(newer, (2, 4, 4)) == 3 * 4 / 2
    assert longest(newer, (9, 16, 16)) == 3 * 64 / 2
    unsaid = as_("qwen2_5_vl", replace(newer, config={**newer.config, "vision_config": {}}))
    assert longest(unsaid, (2, 4, 4)) == 3 * 4 / 4


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (GRID, "without 'second_per_grid_ts', which this model needs with it: one number, the seconds of a step"),
        ({"second_per_grid_ts": (1.0,)}, "without 'video_grid_thw', which this model needs with it: three positive"),
        ({**GRID, "second_per_grid_ts": (1.0,), "timestamps": (1.0, 2.0)}, "with 'timestamps'; this model wants"),
        *(
            ({**GRID, "second_per_grid_ts": wrong}, "second_per_grid_ts must be one number, the seconds of a step in")
            for wrong in [(), (1.0, 1.0), *((one,) for one in (0.0, -0.0, 0, -1.0, 6.01, 1e300, 2**63, *ENDLESS))]
        ),
        ({"video_grid_thw": (2.0, 4.0, 4.0), "second_per_grid_ts": (1.0,)}, "three positive whole numbers"),
        ({"video_grid_thw": (4, 4, 4), "second_per_grid_ts": (1.0,)}, "makes 16 tokens, but the embedding has 8"),
    ],
)
def test_a_video_of_qwen2_5_vl_without_a_right_step_is_refused(newer, metadata, words):
    assert words in refused(newer, given("video", 8, **metadata))


def expanded(checkpoint, medium):
    modality, tokenizer = family_of(checkpoint).media["video"], Tokenizer.load(str(MODEL_DIR))
    return expansion_of(modality, checkpoint, medium, tokenizer.plain)


@pytest.mark.parametrize("times", [(0.25, 1.25), (0, 1_000_000), (3.0, 3.0)])
def test_a_video_of_qwen3_vl_has_its_times_in_the_prompt(qwen3, times):
    medium = given("video", 8, **GRID, timestamps=times)
    assert facts(qwen3, medium) == (8, GRID), "the language model reads them, and is told nothing of them besides"
    tokenise = Tokenizer.load(str(MODEL_DIR)).plain
    pad, start, end = (qwen3.config[f"{name}_token_id"] for name in ("video", "vision_start", "vision_end"))
    wanted: list[int] = []
    for one in times:
        wanted += [*tokenise(f"<{one:.1f} seconds>"), start, *[pad] * 4, end]
    expansion = expanded(qwen3, medium)
    assert (list(expansion.token_ids), expansion.rows) == (wanted, 8)


def test_an_embedding_with_as_many_times_as_frames_is_accepted(qwen3):
    times = tuple(float(index) for index in range(MAX_NUMBERS))
    sides = {"video_grid_thw": (MAX_NUMBERS, 2, 2)}
    assert expanded(qwen3, given("video", MAX_NUMBERS, **sides, timestamps=times)).rows == MAX_NUMBERS >= 384
    more = {"video_grid_thw": (MAX_NUMBERS + 1, 2, 2), "timestamps": (*times, 1e3)}
    assert f"at most {MAX_NUMBERS}" in refused(qwen3, given("video", MAX_NUMBERS + 1, **more))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (GRID, "without 'timestamps', which this model needs with it: 2 numbers, the seconds at the middle of each"),
        ({"timestamps": (0.25, 1.25)}, "without 'video_grid_thw', which this model needs with it: three positive"),
        ({**GRID, "timestamps": (0.25, 1.25), "second_per_grid_ts": (1.0,)}, "with 'second_per_grid_ts'; this model"),
        *(
            ({**GRID, "timestamps": wrong}, "timestamps must be 2 numbers, the seconds at the middle of each step")
            for wrong in [
                *[(), (0.25,), (0.25, 1.25, 2.25), (1.25, 0.25), (-0.5, 0.5), (math.nan, 1.25), (-math.inf, 0.25)],
                *((0.25, one) for one in (1e6 + 1, 1e308, 2**63, *ENDLESS)),
            ]
        ),
        ({"video_grid_thw": (4, 4, 4), "timestamps": (0.0,) * 4}, "makes 16 tokens, but the embedding has 8"),
    ],
)
def test_a_video_of_qwen3_vl_without_right_times_is_refused(qwen3, metadata, words):
    medium = given("video", 8, **metadata)
    assert words in refused(qwen3, medium)
    with pytest.raises(ValueError, match=re.escape(words)):
        expanded(qwen3, medium)


def test_a_long_wrong_tensor_is_not_repeated_to_the_client(qwen3):
    message = refused(qwen3, given("video", 8, **GRID, timestamps=(0.5,) * MAX_NUMBERS))
    assert message.endswith("not [0.5, 0.5, 0.5, 0.5] and 508 more")


def test_the_wire_carries_whole_numbers_and_others_and_no_more_than_are_read():
    medium = given("video", 8, **GRID, timestamps=(0.25, 2.0))
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(medium), type=Medium)
    assert again.metadata == medium.metadata
    assert [type(one) for one in again.metadata["video_grid_thw"]] == [int] * 3
    assert [type(one) for one in again.metadata["timestamps"]] == [float] * 2
    for wrong in [(0.5,) * (MAX_NUMBERS + 1), (True, 2, 2), ("1", 2, 2), (None, 1, 1), [[1, 2]], 1.0]:
        sent = msgspec.msgpack.encode(given("video", 8, timestamps=wrong))
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(sent, type=Medium)


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
    modality = replace(family_of(qwen).media["image"], precomputed=None)
    with pytest.raises(ValueError, match="takes no precomputed embeddings of kind image"):
        tokens_of(modality, qwen, given("image", 8, image_grid_thw=(1, 4, 8)))
