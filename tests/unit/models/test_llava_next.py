"""What is known of a LLaVA-1.6 checkpoint, against transformers' own rules over many sizes."""

import random

import pytest

from triptych.contracts.media import Picture
from triptych.models.base import Checkpoint
from triptych.models.llava_next import FAMILY, best_resolution, image_patches, image_tokens, padding
from triptych.models.registry import TEXT_ONLY, family_of

# As the published 7B model on Mistral has it.
PUBLISHED = {
    "model_type": "llava_next",
    "image_token_index": 32000,
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "text_config": {"model_type": "mistral", "max_position_embeddings": 32768, "vocab_size": 32064},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "patch_size": 14},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
SMALL = {
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]],
    "vision_config": {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14},
}
SIGLIP = {
    "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [384, 384], [1920, 384], [384, 1920]],
    "vision_config": {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14},
    "vision_feature_select_strategy": "full",
}
EDGES = [1, 2, 13, 14, 55, 56, 57, 111, 112, 168, 335, 336, 337, 480, 640, 671, 672, 673, 1008, 1080, 1920, 4096]


def checkpoint(**changes):
    return Checkpoint("x", {**PUBLISHED, **changes})


def picture(width, height):
    return Picture(content_hash="", width=width, height=height)


def sizes():
    rng = random.Random(5)
    drawn = [(rng.randint(1, 3000), rng.randint(1, 3000)) for _ in range(2000)]
    return [(width, height) for width in EDGES for height in EDGES] + drawn


def test_the_published_model():
    assert family_of(checkpoint()) is FAMILY
    assert FAMILY.modalities == ("image",)
    assert FAMILY.media["image"].placeholder(checkpoint()) == 32000
    assert FAMILY.embedding_width(checkpoint()) == 4096
    assert image_tokens(checkpoint(), picture(672, 672)) == 576 + 48 * 49
    assert image_tokens(checkpoint(), picture(336, 336)) == 576 + 24 * 25, "what pads it is dropped"
    assert image_tokens(checkpoint(), picture(1008, 336)) == 576 + 24 * 73
    assert image_patches(checkpoint(), picture(336, 336)) == 3 * 576


@pytest.mark.parametrize("changes", [{}, SMALL, SIGLIP], ids=["published", "small", "siglip"])
def test_tokens_are_those_of_the_models_own_processor(changes):
    transformers = pytest.importorskip("transformers")
    here = checkpoint(**changes)
    side, siglip = here.config["vision_config"]["image_size"], changes is SIGLIP
    processor = object.__new__(transformers.LlavaNextProcessor)
    processor.image_processor = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": side}, image_grid_pinpoints=here.config["image_grid_pinpoints"]
    )
    processor.patch_size = 14
    processor.num_additional_image_tokens = 0 if siglip else 1
    processor.vision_feature_select_strategy = here.config["vision_feature_select_strategy"]
    theirs = processor._get_num_multimodal_tokens([(height, width) for width, height in sizes()])
    assert [image_tokens(here, picture(*size)) for size in sizes()] == theirs.num_image_tokens


def test_resolution_and_padding_are_those_of_the_model():
    modeling = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")
    torch = pytest.importorskip("torch")
    resolutions = SMALL["image_grid_pinpoints"]
    for width, height in sizes():
        high, wide = best_resolution(resolutions, width, height)
        assert modeling.get_anyres_image_grid_shape((height, width), resolutions, 1) == (high, wide)
        rows, columns = high // 14, wide // 14
        above, beside = padding(rows, columns, width, height)
        left = modeling.unpad_image(torch.zeros(1, rows, columns), (height, width)).shape
        assert tuple(left) == (1, rows - 2 * above, columns - 2 * beside)


def test_patches_are_those_that_the_image_processor_makes():
    transformers = pytest.importorskip("transformers")
    image = pytest.importorskip("PIL.Image")
    settings = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    processor = transformers.LlavaNextImageProcessor(
        **settings, image_grid_pinpoints=SMALL["image_grid_pinpoints"], do_rescale=False, do_normalize=False
    )
    for width, height in [(56, 56), (200, 40), (40, 200), (300, 20), (60, 400)]:
        made = processor(images=[image.new("RGB", (width, height))], return_tensors="pt")["pixel_values"]
        assert image_patches(checkpoint(**SMALL), picture(width, height)) == made.shape[1] * 16


def test_values_that_a_checkpoint_leaves_out_are_transformers_defaults():
    transformers = pytest.importorskip("transformers")
    whole, bare = transformers.LlavaNextConfig(), Checkpoint("x", {"model_type": "llava_next"})
    assert FAMILY.media["image"].placeholder(bare) == whole.image_token_index
    assert FAMILY.embedding_width(bare) == whole.text_config.hidden_size
    assert [list(one) for one in whole.image_grid_pinpoints] == PUBLISHED["image_grid_pinpoints"]
    assert image_tokens(bare, picture(640, 480)) == image_tokens(checkpoint(), picture(640, 480))


def test_a_tower_of_another_kind_is_not_of_this_family():
    assert family_of(checkpoint(vision_config={"model_type": "pixtral"})) is TEXT_ONLY
