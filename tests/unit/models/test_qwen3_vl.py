"""Qwen3-VL: tokens, frames, times and prompts equal those of transformers' own processors."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from support.checkpoints import copy_demo
from triptych.contracts.media import Medium, Picture, Video
from triptych.demo import MODEL_DIR
from triptych.models.base import Checkpoint
from triptych.models.qwen3_vl import FAMILY, embedding_width, frame_indices, timestamps, video_grid
from triptych.models.registry import family_of, load_checkpoint
from triptych.processor.tokenizer import Tokenizer

VIDEO, PICTURE = FAMILY.media["video"], FAMILY.media["image"]
CONFIG = {
    "model_type": "qwen3_vl",
    "vision_config": {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2},
    "text_config": {"hidden_size": 2048},
}
# As the published models have it.
PUBLISHED = {"size": {"longest_edge": 25_165_824, "shortest_edge": 4096}, "patch_size": 16, "merge_size": 2}
SETTINGS = [
    {},
    PUBLISHED,
    {"size": {"shortest_edge": 8192, "longest_edge": 61_440}},
    {"size": {"shortest_edge": 4096, "longest_edge": 500_000}, "cap_pixels_per_frame": True, "max_video_tokens": 20},
    {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 4096, "longest_edge": 65_536}},
]


def checkpoint(**settings) -> Checkpoint:
    return Checkpoint("x", CONFIG, video=settings)


def film(seen: int, width: int = 96, height: int = 64, fps: float = 8.0, **fields) -> Medium:
    """One of which ``seen`` frames are seen, and which has no others."""
    whole = {"num_frames": seen, "frame_indices": tuple(range(seen)), "fps": fps, **fields}
    return Video(content_hash="", format="MP4", width=width, height=height, **whole)


@pytest.fixture(scope="module")
def module():
    return pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")


@pytest.mark.parametrize("settings", SETTINGS)
def test_grids_and_tokens_are_those_of_transformers(module, settings):
    import numpy

    processor = module.Qwen3VLVideoProcessor(**{"cap_pixels_per_frame": False, **settings})
    rng = random.Random(5)
    sizes = [(2, 64, 48), (3, 30, 200), (5, 240, 320), (8, 17, 19), (6, 300, 400), (4, 9, 16)]
    sizes += [(rng.randrange(2, 14), rng.randrange(8, 300), rng.randrange(8, 300)) for _ in range(16)]
    for frames, height, width in sizes:
        video = numpy.zeros((frames, height, width, 3), numpy.uint8)
        made = processor(videos=[video], return_tensors="pt", input_data_format="channels_last", do_sample_frames=False)
        grid = tuple(made["video_grid_thw"][0].tolist())
        medium = film(frames, width, height)
        assert VIDEO.metadata(checkpoint(**settings), medium) == {"video_grid_thw": grid}, (frames, width, height)
        rows = len(made["pixel_values_videos"]) // processor.merge_size**2
        assert VIDEO.tokens(checkpoint(**settings), medium) == rows


def test_sizes_are_those_of_transformers_over_many(module):
    rng = random.Random(9)
    for _ in range(600):
        frames, height, width = rng.randrange(2, 400), rng.randrange(4, 3000), rng.randrange(4, 3000)
        settings = {"factor": 32, "min_pixels": 128 * 32 * 32, "max_pixels": 32 * 32 * 768}
        try:
            high, wide = module.smart_resize(frames, height, width, temporal_factor=2, **settings)
        except ValueError:
            with pytest.raises(ValueError, match="200"):
                video_grid(checkpoint(), frames, width, height)
            continue
        assert video_grid(checkpoint(), frames, width, height) == (-(-frames // 2), high // 16, wide // 16)


@pytest.mark.parametrize(
    "settings",
    [{}, {"fps": 1}, {"fps": 4}, {"fps": 0.7}, {"max_frames": 12}, {"min_frames": 10}, {"num_frames": 8, "fps": None}],
    ids=lambda settings: str(settings or "defaults"),
)
def test_frames_are_those_that_transformers_samples(module, settings):
    from transformers.video_utils import VideoMetadata

    rng = random.Random(3)
    processor = module.Qwen3VLVideoProcessor(**settings)
    wanted = {"num_frames": settings["num_frames"]} if "num_frames" in settings else {}
    lengths = [(1, 30.0), (2, 30.0), (3, 8.0), (8, 8.0), (9, 8.0), (48, 24.0), (300, 29.97), (18000, 30.0)]
    lengths += [(rng.randrange(8, 20_000), rng.choice([8.0, 12.5, 23.976, 25.0, 29.97, 60.0])) for _ in range(1000)]
    for frames, fps in lengths:
        theirs = processor.sample_frames(VideoMetadata(total_num_frames=frames, fps=fps), **wanted)
        # It repeats frames where it was told a number that is more than there are.
        assert frame_indices(checkpoint(**settings), frames, fps) == tuple(dict.fromkeys(theirs.tolist())), (
            frames,
            fps,
        )


def test_a_rate_of_none_takes_all_frames():
    assert frame_indices(checkpoint(fps=None), 9, 30.0) == tuple(range(9))
    assert len(frame_indices(checkpoint(fps=None), 5000, 30.0)) == 768


def test_frames_never_exceed_what_there_is():
    rng = random.Random(1)
    for _ in range(2000):
        frames, fps = rng.randrange(1, 40_000), rng.uniform(0.05, 240)
        indices = frame_indices(checkpoint(), frames, fps)
        assert 0 == indices[0] <= indices[-1] < frames
        assert list(indices) == sorted(set(indices))
        assert len(indices) <= 768


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The demo's tokenizer with Qwen3-VL's processors and config."""
    transformers = pytest.importorskip("transformers")
    folder = copy_demo(tmp_path_factory.mktemp("qwen3"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size = {"shortest_edge": 8192, "longest_edge": 61_440}
    transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(patch_size=16, size=size),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(size=size, cap_pixels_per_frame=False),
    ).save_pretrained(folder)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    older = load_checkpoint(str(MODEL_DIR)).config
    config = {**CONFIG, **{name: older[name] for name in names}}
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    return folder


def test_prompts_are_those_of_transformers(folder):
    """Of videos of many lengths and rates: every token, and with them every time."""
    import numpy
    from transformers import AutoProcessor
    from transformers.video_utils import VideoMetadata

    processor, ours = AutoProcessor.from_pretrained(folder), load_checkpoint(str(folder))
    tokenise = Tokenizer.load(str(folder)).plain
    rng = random.Random(2)
    for frames, fps in [
        (2, 30.0),
        (3, 29.97),
        (7, 4.0),
        *((rng.randrange(8, 90), rng.uniform(3, 60)) for _ in range(8)),
    ]:
        medium = film(frames, 48, 80, fps)
        medium = msgspec.structs.replace(medium, frame_indices=VIDEO.frame_indices(ours, frames, fps))
        made = processor(
            text=["<|video_pad|>"],
            videos=[numpy.zeros((frames, 80, 48, 3), numpy.uint8)],
            video_metadata=[VideoMetadata(total_num_frames=frames, fps=fps)],
            return_tensors="pt",
        )
        expansion = VIDEO.expand(ours, medium, tokenise)
        assert list(expansion.token_ids) == made["input_ids"][0].tolist(), (frames, fps)
        assert expansion.embedded == VIDEO.placeholder(ours)
        assert expansion.rows == VIDEO.tokens(ours, medium)
        assert VIDEO.metadata(ours, medium) == {"video_grid_thw": tuple(made["video_grid_thw"][0].tolist())}


def test_the_time_of_a_step_is_that_of_its_middle():
    medium = film(0, num_frames=40, frame_indices=(0, 10, 20, 30, 39), fps=10.0)
    assert timestamps(checkpoint(), medium) == pytest.approx([0.5, 2.5, 3.9]), "the last frame fills its step"


@pytest.mark.parametrize(
    "fields", [{"fps": 0.0}, {"fps": float("inf")}, {"num_frames": 2}, {"frame_indices": ()}], ids=str
)
def test_times_that_cannot_be_told_are_refused(fields):
    with pytest.raises(ValueError, match="not known"):
        timestamps(checkpoint(), film(4, **fields))


def test_a_single_frame_is_no_video_for_it():
    assert frame_indices(checkpoint(), 1, 30.0) == (0,)
    with pytest.raises(ValueError, match="at least 2 frames"):
        VIDEO.tokens(checkpoint(), film(1))


def test_pictures_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    processor = transformers.Qwen2VLImageProcessor(patch_size=16, size=size)
    known = Checkpoint("x", CONFIG, preprocessor={"patch_size": 16, "size": size})
    rng = random.Random(4)
    for _ in range(200):
        width, height = rng.randrange(20, 3000), rng.randrange(20, 3000)
        medium = Picture(content_hash="", format="PNG", width=width, height=height)
        patches = processor.get_number_of_image_patches(height, width, {})
        assert PICTURE.tokens(known, medium) == patches // 4
        assert PICTURE.metadata(known, medium)["image_grid_thw"][0] == 1


def test_embeddings_hold_what_several_layers_say():
    assert embedding_width(checkpoint()) == 4 * 2048
    vision = {**CONFIG["vision_config"], "deepstack_visual_indexes": [5]}
    assert embedding_width(Checkpoint("x", {**CONFIG, "vision_config": vision})) == 2 * 2048
    with pytest.raises(KeyError, match="hidden_size"):
        embedding_width(Checkpoint("x", {"model_type": "qwen3_vl"}))


def test_the_defaults_are_those_of_transformers(module):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3VLConfig()
    bare = Checkpoint("x", {"model_type": "qwen3_vl"})
    assert (PICTURE.placeholder(bare), VIDEO.placeholder(bare)) == (config.image_token_id, config.video_token_id)
    expansion = VIDEO.expand(bare, film(2), lambda text: [1])
    assert expansion.token_ids[:2] == (1, config.vision_start_token_id)
    assert expansion.token_ids[-1] == config.vision_end_token_id
    layers = config.vision_config.deepstack_visual_indexes
    assert embedding_width(Checkpoint("x", {"text_config": {"hidden_size": 1}})) == 1 + len(layers)


@pytest.mark.parametrize("model_type", ["qwen3_vl", "qwen3_vl_moe"])
def test_which_models_it_is(model_type):
    assert family_of(Checkpoint("x", {"model_type": model_type})) is FAMILY
    assert FAMILY.modalities == ("image", "video")
    assert FAMILY.tokenises
