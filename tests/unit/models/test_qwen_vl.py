"""Token counts and grids of pictures equal those of transformers' own image processor."""

import math
import random

import pytest

from support.checkpoints import copy_demo
from triptych.demo import MODEL_DIR
from triptych.models.base import Checkpoint
from triptych.models.qwen_vl import FAMILY, embedding_width, image_metadata, image_tokens, resized
from triptych.models.registry import load_checkpoint

SETTINGS = [(28, 3136, 1_003_520), (28, 12_544, 50_176), (32, 65_536, 16_777_216)]


def sizes(count=220):
    rng = random.Random(8)
    fixed = [(4, 4), (28, 28), (14, 14), (42, 42), (27, 29), (1, 200), (200, 1), (1920, 1080), (9999, 50), (56, 11200)]
    while len(fixed) < count:
        height, width = (max(1, int(math.exp(rng.uniform(0, 9)))) for _ in range(2))
        if max(height, width) <= 200 * min(height, width):
            fixed.append((height, width))
    return fixed


@pytest.fixture(scope="module")
def smart_resize():
    return pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl").smart_resize


@pytest.mark.parametrize(("factor", "low", "high"), SETTINGS)
def test_sizes_are_those_of_transformers(smart_resize, factor, low, high):
    for height, width in sizes():
        expected = smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
        assert resized(height, width, factor, low, high) == expected, (height, width)


def test_counts_are_those_of_transformers_for_the_demo_model(smart_resize):
    checkpoint = load_checkpoint(str(MODEL_DIR))
    for height, width in sizes():
        high, wide = smart_resize(
            height,
            width,
            factor=28,
            min_pixels=checkpoint.preprocessor["size"]["shortest_edge"],
            max_pixels=checkpoint.preprocessor["size"]["longest_edge"],
        )
        assert image_tokens(checkpoint, width, height) == high * wide // 28**2, (height, width)


SIZES = [
    {"min_pixels": 3136, "max_pixels": 28 * 28 * 64},
    {"size": {"shortest_edge": 12_544, "longest_edge": 50_176}},
    {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 4096, "longest_edge": 65_536}},
    {"patch_size": 7, "merge_size": 4, "size": {"shortest_edge": 3136, "longest_edge": 50_176}},
]


@pytest.mark.parametrize("settings", SIZES)
def test_grids_are_those_that_the_image_processor_makes(settings):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    from PIL import Image

    processor = module.Qwen2VLImageProcessor(**settings)
    checkpoint = Checkpoint("x", {"vision_config": {"patch_size": 14, "spatial_merge_size": 2}}, settings)
    for height, width in [size for size in sizes(90) if size[0] * size[1] < 1_000_000]:
        made = processor(images=[Image.new("RGB", (width, height))], return_tensors="pt")
        grid = tuple(made["image_grid_thw"][0].tolist())
        assert image_metadata(checkpoint, width, height) == {"image_grid_thw": grid}, (width, height)
        assert grid[1] * grid[2] == len(made["pixel_values"]), "patches, before they are merged"
        assert image_tokens(checkpoint, width, height) == len(made["pixel_values"]) // processor.merge_size**2


def test_the_embedding_is_as_wide_as_the_language_model():
    nested = {"text_config": {"hidden_size": 128}, "vision_config": {"hidden_size": 96}}
    assert embedding_width(Checkpoint("x", nested)) == 128
    flat = {"hidden_size": 3584, "vision_config": {"hidden_size": 1280, "out_hidden_size": 3584}}
    assert embedding_width(Checkpoint("x", flat)) == 3584, "published checkpoints have the flat form"


def test_an_extreme_shape_is_refused_as_transformers_does(smart_resize):
    checkpoint = load_checkpoint(str(MODEL_DIR))
    for height, width in [(1, 201), (201, 1), (4, 900)]:
        with pytest.raises(ValueError, match="200"):
            image_tokens(checkpoint, width, height)
        with pytest.raises(ValueError, match="200"):
            image_metadata(checkpoint, width, height)
        with pytest.raises(ValueError, match="200"):
            smart_resize(height, width)


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        ({}, 35 * 35),
        ({"min_pixels": 3136, "max_pixels": 28 * 28 * 100}, 100),
        ({"size": {"shortest_edge": 3136, "longest_edge": 28 * 28 * 64}}, 64),
        ({"size": {"shortest_edge": 3136, "longest_edge": 28 * 28 * 64}, "max_pixels": 28 * 28 * 25}, 25),
        ({"patch_size": 16, "merge_size": 2, "max_pixels": 32 * 32 * 49, "min_pixels": 1024}, 49),
    ],
)
def test_where_the_settings_come_from(preprocessor, expected):
    checkpoint = Checkpoint("x", {"vision_config": {"patch_size": 14, "spatial_merge_size": 2}}, preprocessor)
    assert image_tokens(checkpoint, 1000, 1000) == expected


def test_processor_settings_of_either_file_are_read(tmp_path):
    folder = copy_demo(tmp_path)
    both = load_checkpoint(str(folder)).preprocessor["size"]
    (folder / "preprocessor_config.json").unlink()
    assert load_checkpoint(str(folder)).preprocessor["size"] == both, "transformers 5 writes processor_config.json"


def test_the_placeholder_is_the_configs():
    checkpoint = load_checkpoint(str(MODEL_DIR))
    assert FAMILY.media["image"].placeholder(checkpoint) == checkpoint.config["image_token_id"]
    assert FAMILY.modalities == ("image", "video")
