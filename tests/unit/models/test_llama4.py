"""What is known of a Llama 4 checkpoint, against transformers' own rules over many sizes."""

import random

import pytest

from triptych.contracts.errors import ConfigError
from triptych.contracts.media import Picture
from triptych.models.base import Checkpoint
from triptych.models.llama4 import FAMILY, canvas, image_expansion, image_tokens
from triptych.models.registry import family_of

IDS = {
    "<|image_start|>": 1,
    "<|image_end|>": 2,
    "<|image|>": 3,
    "<|patch|>": 4,
    "<|tile_x_separator|>": 5,
    "<|tile_y_separator|>": 6,
}
# As the published models have it.
PUBLISHED = {
    "model_type": "llama4",
    "text_config": {"model_type": "llama4_text", "max_position_embeddings": 1048576, "hidden_size": 5120},
    "vision_config": {"model_type": "llama4_vision_model", "image_size": 336, "patch_size": 14},
}
EDGES = [1, 2, 13, 55, 56, 57, 111, 112, 335, 336, 337, 480, 640, 672, 1008, 1080, 1920, 5376, 5377, 8000]


def checkpoint(side=336, **preprocessor):
    config = {**PUBLISHED, "vision_config": {**PUBLISHED["vision_config"], "image_size": side}}
    return Checkpoint("x", config, preprocessor, added_tokens=IDS)


def picture(width, height):
    return Picture(content_hash="", width=width, height=height)


def sizes():
    rng = random.Random(5)
    drawn = [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(500)]
    return [(width, height) for width in EDGES for height in EDGES] + drawn


def no_text(text):
    raise AssertionError(f"{text!r} need not be tokenised")


def test_the_published_model():
    assert family_of(checkpoint()) is FAMILY
    assert FAMILY.modalities == ("image",)
    assert FAMILY.media["image"].placeholder(checkpoint()) == 3
    assert FAMILY.embedding_width is None
    assert "no embeddings" in FAMILY.no_embeddings
    assert image_tokens(checkpoint(), picture(336, 336)) == 144
    assert image_tokens(checkpoint(), picture(672, 336)) == 3 * 144


def test_a_tokenizer_without_its_tokens_is_named():
    ids = {text: number for text, number in IDS.items() if text != "<|patch|>"}
    with pytest.raises(ConfigError, match=r"x/tokenizer.json lacks <\|patch\|>"):
        FAMILY.media["image"].placeholder(Checkpoint("x", PUBLISHED, added_tokens=ids))


@pytest.mark.parametrize(
    ("side", "settings"),
    [(336, {}), (336, {"resize_to_max_canvas": True}), (56, {"max_patches": 5}), (448, {"max_patches": 12})],
    ids=str,
)
def test_the_canvas_is_that_of_the_image_processor(side, settings):
    pytest.importorskip("torchvision")
    processing = pytest.importorskip("transformers.models.llama4.image_processing_llama4")
    torch = pytest.importorskip("torch")
    size = processing.SizeDict(height=side, width=side)
    known = torch.tensor(processing.find_supported_resolutions(settings.get("max_patches", 16), size))
    here, grow = checkpoint(side, **settings), settings.get("resize_to_max_canvas", False)
    for width, height in sizes():
        theirs = processing.get_best_fit((height, width), known, resize_to_max_canvas=grow)
        assert [one * side for one in canvas(here, width, height)] == theirs.tolist(), (width, height)


def test_the_prompt_is_that_of_the_models_processor():
    transformers = pytest.importorskip("transformers")
    processor = object.__new__(transformers.Llama4Processor)
    here = checkpoint(56)
    for width, height in sizes()[::7]:
        text = processor._prompt_split_image(canvas(here, width, height), 4)
        expected = [IDS[f"<|{name}"] for name in text.replace("<|", "\n<|").split("\n<|")[1:]]
        made = image_expansion(here, picture(width, height), no_text)
        assert list(made.token_ids) == expected
        assert made.rows == image_tokens(here, picture(width, height))


def test_values_that_a_checkpoint_leaves_out_are_transformers_defaults():
    transformers = pytest.importorskip("transformers")
    vision = transformers.Llama4VisionConfig()
    stated = {"image_size": vision.image_size, "patch_size": vision.patch_size}
    ratio = {"pixel_shuffle_ratio": vision.pixel_shuffle_ratio}
    bare, full = ({"model_type": "llama4", "vision_config": one} for one in ({}, {**stated, **ratio}))
    for width, height in sizes()[::50]:
        one = picture(width, height)
        assert image_tokens(Checkpoint("x", bare), one) == image_tokens(Checkpoint("x", full), one)
