"""Frames, token counts and grids of videos equal those of transformers' own video processor."""

from __future__ import annotations

import json
import random

import pytest

from support.checkpoints import copy_demo
from triptych.contracts.media import Medium, PrecomputedEmbedding, Video
from triptych.demo import MODEL_DIR
from triptych.models.base import Checkpoint
from triptych.models.mrope_budget import _CONTEXT, PositionsTooFar, check_positions
from triptych.models.qwen_vl import _TOKENS_PER_SECOND, FAMILY, FAMILY_2_5, frame_indices, video_grid
from triptych.models.registry import family_of, load_checkpoint

VIDEO = FAMILY.media["video"]
CONFIG = {"vision_config": {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}}
SETTINGS = [
    {},
    {"size": {"shortest_edge": 3136, "longest_edge": 28 * 28 * 64}},
    {"min_pixels": 3136, "max_pixels": 28 * 28 * 16},
    {
        "size": {"shortest_edge": 3136, "longest_edge": 28 * 28 * 64},
        "cap_pixels_per_frame": True,
        "max_video_tokens": 200,
    },
    {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 4096, "longest_edge": 65_536}},
]


def checkpoint(**settings) -> Checkpoint:
    return Checkpoint("x", CONFIG, video=settings)


@pytest.fixture(scope="module")
def module():
    return pytest.importorskip("transformers.models.qwen2_vl.video_processing_qwen2_vl")


@pytest.mark.parametrize("settings", SETTINGS)
def test_grids_and_tokens_are_those_of_transformers(module, settings):
    import numpy

    processor = module.Qwen2VLVideoProcessor(**{"cap_pixels_per_frame": False, **settings})
    rng = random.Random(5)
    sizes = [(1, 28, 28), (2, 64, 48), (3, 30, 200), (7, 240, 320), (8, 17, 19), (5, 400, 30)]
    sizes += [(rng.randrange(1, 14), rng.randrange(8, 300), rng.randrange(8, 300)) for _ in range(24)]
    for frames, height, width in sizes:
        video = numpy.zeros((frames, height, width, 3), numpy.uint8)
        made = processor(videos=[video], return_tensors="pt", input_data_format="channels_last")
        grid = tuple(made["video_grid_thw"][0].tolist())
        medium = Video(content_hash="", width=width, height=height, frame_indices=tuple(range(frames)))
        described = VIDEO.metadata(checkpoint(**settings), medium)
        assert described == {"video_grid_thw": grid}, (frames, width, height)
        patches = len(made["pixel_values_videos"])
        assert VIDEO.tokens(checkpoint(**settings), medium) == patches // processor.merge_size**2


def test_sizes_are_those_of_transformers_over_many(module):
    rng = random.Random(9)
    for _ in range(400):
        height, width = rng.randrange(4, 3000), rng.randrange(4, 3000)
        if max(height, width) > 200 * min(height, width):
            continue
        expected = module.smart_resize(height, width, 28, 128 * 28 * 28, 28 * 28 * 768)
        grid = video_grid(checkpoint(), 9, width, height)
        assert grid == (5, expected[0] // 14, expected[1] // 14), (height, width)


@pytest.mark.parametrize(
    "settings",
    [{}, {"fps": 1.0}, {"fps": 4}, {"max_frames": 12}, {"min_frames": 10}, {"num_frames": 8}],
    ids=lambda settings: str(settings or "defaults"),
)
def test_frames_are_those_that_transformers_samples(module, settings):
    """Up to its rounding: it computes in float32, which at the end may name one frame more than there is, and in
    long videos the neighbour of the right one.
    """
    from transformers.video_utils import VideoMetadata

    rng = random.Random(3)
    processor = module.Qwen2VLVideoProcessor(**settings)
    wanted = {} if "num_frames" in settings else {"fps": settings.get("fps", 2.0)}
    lengths = [(2, 30.0), (3, 8.0), (8, 8.0), (9, 8.0), (48, 24.0), (300, 29.97), (18000, 30.0), (36000, 60.0)]
    lengths += [
        (rng.randrange(8, 20_000), rng.choice([8.0, 12.5, 23.976, 25.0, 29.97, 30.0, 60.0])) for _ in range(300)
    ]
    for frames, fps in lengths:
        if frames < settings.get("num_frames", 0):
            continue  # transformers refuses these
        theirs = processor.sample_frames(VideoMetadata(total_num_frames=frames, fps=fps), **wanted).tolist()
        theirs = [index for index in theirs if index < frames]
        ours = list(frame_indices(checkpoint(**settings), frames, fps))
        assert len(ours) == len(theirs), (frames, fps)
        apart = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
        assert apart <= (frames > 2000), (frames, fps)


def test_frames_of_videos_shorter_than_a_patch_or_than_asked():
    assert frame_indices(checkpoint(), 1, 30.0) == (0,)
    assert frame_indices(checkpoint(), 2, 30.0) == (0, 1)
    assert frame_indices(checkpoint(num_frames=8), 3, 30.0) == (0, 1, 2)
    assert frame_indices(checkpoint(temporal_patch_size=4), 3, 30.0) == (0, 1, 2)


def test_frames_never_exceed_what_there_is():
    rng = random.Random(1)
    for _ in range(3000):
        frames, fps = rng.randrange(1, 40_000), rng.uniform(0.05, 240)
        indices = frame_indices(checkpoint(), frames, fps)
        assert 0 <= indices[0] <= indices[-1] < frames
        assert list(indices) == sorted(set(indices))
        assert len(indices) <= 768


def test_an_extreme_shape_is_refused():
    medium = Video(content_hash="", width=900, height=4, frame_indices=(0, 1))
    for asked in (VIDEO.tokens, VIDEO.metadata):
        with pytest.raises(ValueError, match="200"):
            asked(checkpoint(), medium)


def test_settings_come_from_the_file_that_transformers_reads(tmp_path):
    folder = copy_demo(tmp_path)
    assert load_checkpoint(str(folder)).video["video_processor_type"] == "Qwen2VLVideoProcessor"
    processors = json.loads((folder / "processor_config.json").read_text())
    del processors["video_processor"]
    (folder / "processor_config.json").write_text(json.dumps(processors))
    assert "image_processor_type" in load_checkpoint(str(folder)).video, "of old checkpoints the picture's serve both"
    (folder / "video_preprocessor_config.json").write_text('{"max_frames": 6}')
    assert load_checkpoint(str(folder)).video == {"max_frames": 6}


def test_which_models_take_videos():
    assert VIDEO.placeholder(load_checkpoint(str(MODEL_DIR))) == 461
    assert family_of(load_checkpoint(str(MODEL_DIR))).modalities == ("image", "video")
    newer = family_of(Checkpoint("x", {"model_type": "qwen2_5_vl"}))
    assert newer is FAMILY_2_5
    assert newer.modalities == ("image", "video")


NEWER = FAMILY_2_5.media["video"]


def film(frames: int, fps: float, frame_indices: tuple[int, ...]) -> Medium:
    fields = {"num_frames": frames, "fps": fps, "frame_indices": frame_indices}
    return Video(content_hash="", format="MP4", width=96, height=64, **fields)


def test_qwen2_5_vl_is_told_how_long_a_step_is_as_transformers_tells_it():
    numpy = pytest.importorskip("numpy")
    transformers = pytest.importorskip("transformers")
    video_utils = pytest.importorskip("transformers.video_utils")
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(),
        transformers.AutoTokenizer.from_pretrained(MODEL_DIR),
        transformers.Qwen2VLVideoProcessor(size={"shortest_edge": 3136, "longest_edge": 3136}),
    )
    rng = random.Random(6)
    for frames, fps in [
        (3, 30.0),
        (12, 8.0),
        (80, 16.0),
        *((rng.randrange(4, 90), rng.uniform(3, 60)) for _ in "12345"),
    ]:
        indices = frame_indices(checkpoint(), frames, fps)
        told = video_utils.VideoMetadata(total_num_frames=frames, fps=fps, frames_indices=list(indices))
        made = processor(
            text=["<|video_pad|>"],
            videos=[numpy.zeros((len(indices), 64, 96, 3), numpy.uint8)],
            video_metadata=[told],
            return_tensors="pt",
        )
        ours = NEWER.metadata(
            checkpoint(size={"shortest_edge": 3136, "longest_edge": 3136}), film(frames, fps, indices)
        )
        assert ours["video_grid_thw"] == tuple(made["video_grid_thw"][0].tolist())
        assert ours["second_per_grid_ts"] == pytest.approx(made["second_per_grid_ts"].tolist(), rel=1e-6)


def test_positions_of_a_second_are_by_default_transformers():
    transformers = pytest.importorskip("transformers")
    assert transformers.Qwen2_5_VLConfig().vision_config.tokens_per_second == _TOKENS_PER_SECOND


@pytest.mark.parametrize(
    "unknown", [film(0, 8.0, (0, 1)), film(8, 0.0, (0, 1)), film(8, float("nan"), (0, 1)), film(2, 8.0, (0, 5))]
)
def test_qwen2_5_vl_takes_no_video_whose_times_are_not_known(unknown):
    with pytest.raises(ValueError, match="not known"):
        NEWER.metadata(checkpoint(), unknown)


SMALL = Checkpoint(
    "x",
    {**CONFIG, "text_config": {"max_position_embeddings": 1024}},
    video={"size": {"shortest_edge": 3136, "longest_edge": 3136}},
)


def slow(frames: int) -> Medium:
    """Three steps of two tokens; the last one begins ``frames * 8 / 90`` positions after the first."""
    return film(frames, 30.0, (0, 1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("lengths", "refused"),
    [
        ([34_617], None),
        ([34_628], 0),
        ([20_000, 14_616], None),
        ([20_000, 14_800], 1),
        ([60] * 2000, None),
        ([60] * 10 + [40_000], 10),
    ],
    ids=str,
)
def test_videos_take_no_more_positions_than_the_engine_has_angles_for(lengths, refused):
    """Three for each token of the context, beside the tokens themselves, for all of a request's media."""
    media = [slow(one) for one in lengths]
    beside = [max(0, frames * 8 // 90 + 1 - 6) for frames in lengths]
    assert [NEWER.positions(SMALL, one) for one in media] == beside
    assert (sum(beside) > 3072) == (refused is not None)
    if refused is None:
        check_positions(FAMILY_2_5, SMALL, media)
        return
    with pytest.raises(PositionsTooFar, match=r"second_per_grid_ts.* of at most 3,072") as caught:
        check_positions(FAMILY_2_5, SMALL, media)
    assert caught.value.index == refused


def test_precomputed_videos_count_among_them():
    told = {"video_grid_thw": (3, 2, 4), "second_per_grid_ts": (1.5,)}
    given = PrecomputedEmbedding(kind="video", content_hash="", metadata=told, shape=(6, 128), dtype="float32")
    assert NEWER.positions(SMALL, given) == 12 + 1 - 6
    check_positions(FAMILY_2_5, SMALL, [given])
    with pytest.raises(PositionsTooFar):
        check_positions(FAMILY_2_5, SMALL, [slow(34_617), given])


def test_models_whose_time_goes_in_steps_need_no_bound():
    check_positions(FAMILY, SMALL, [slow(10**6)])


def test_the_context_is_by_default_transformers():
    transformers = pytest.importorskip("transformers")
    assert transformers.Qwen2_5_VLConfig().text_config.max_position_embeddings == _CONTEXT
