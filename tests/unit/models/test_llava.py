"""What is known of a LLaVA checkpoint, with and without the values that checkpoints leave out."""

import pytest

from triptych.models.base import Checkpoint, no_metadata
from triptych.models.llava import FAMILY, image_tokens
from triptych.models.registry import TEXT_ONLY, family_of

# As the published 7B model has it: sizes of the language model are left out where they are its class's defaults.
PUBLISHED = {
    "model_type": "llava",
    "image_token_index": 32000,
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "patch_size": 14},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def checkpoint(**changes):
    return Checkpoint("x", {**PUBLISHED, **changes})


def tokens(**changes):
    return image_tokens(checkpoint(**changes), 640, 480)


def test_the_published_model():
    assert family_of(checkpoint()) is FAMILY
    assert FAMILY.modalities == ("image",)
    assert FAMILY.media["image"].placeholder(checkpoint()) == 32000
    assert tokens() == 576
    assert FAMILY.embedding_width(checkpoint()) == 4096
    assert FAMILY.media["image"].metadata is no_metadata
    assert checkpoint().context_length == 4096


def test_a_picture_of_any_size_becomes_as_many_tokens():
    assert {image_tokens(checkpoint(), width, height) for width, height in [(1, 1), (5000, 20)]} == {576}


@pytest.mark.parametrize(
    ("vision", "strategy", "expected"),
    [
        (PUBLISHED["vision_config"], "full", 577),
        ({}, "default", 576),
        (None, "default", 576),
        ({"hidden_size": 768}, "default", 49),
        ({"image_size": 84, "patch_size": 14}, "default", 36),
        ({"model_type": "siglip_vision_model"}, "full", 196),
        ({"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}, "full", 729),
        ({"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}, "default", 728),
    ],
)
def test_tokens_of_other_towers(vision, strategy, expected):
    assert tokens(vision_config=vision, vision_feature_select_strategy=strategy) == expected


def test_the_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    whole = transformers.LlavaConfig()
    bare = Checkpoint("x", {"model_type": "llava"})
    assert FAMILY.media["image"].placeholder(bare) == whole.image_token_index
    assert image_tokens(bare, 1, 1) == (whole.vision_config.image_size // whole.vision_config.patch_size) ** 2
    for name, tower in [("clip_vision_model", transformers.CLIPVisionConfig()), ("siglip_vision_model", None)]:
        tower = tower or transformers.SiglipVisionConfig()
        classes = 1 if name.startswith("clip") else 0
        expected = (tower.image_size // tower.patch_size) ** 2 + classes
        assert tokens(vision_config={"model_type": name}, vision_feature_select_strategy="full") == expected
    for name, config in [
        ("llama", transformers.LlamaConfig()),
        ("mistral", transformers.MistralConfig()),
        ("qwen2", transformers.Qwen2Config()),
    ]:
        assert FAMILY.embedding_width(checkpoint(text_config={"model_type": name})) == config.hidden_size


def test_a_width_that_nothing_states_is_not_guessed():
    with pytest.raises(KeyError):
        FAMILY.embedding_width(checkpoint(text_config={"model_type": "unheard-of"}))
    assert FAMILY.embedding_width(checkpoint(text_config={"model_type": "unheard-of", "hidden_size": 96})) == 96


def test_the_placeholder_by_its_newer_name():
    config = {key: value for key, value in PUBLISHED.items() if key != "image_token_index"}
    assert FAMILY.media["image"].placeholder(Checkpoint("x", {**config, "image_token_id": 7})) == 7


def test_a_tower_that_takes_pictures_of_any_size_is_not_of_this_family():
    """Pixtral checkpoints have the same ``model_type``, but other counts: better text only than wrong."""
    assert family_of(checkpoint(vision_config={"model_type": "pixtral"})) is TEXT_ONLY
