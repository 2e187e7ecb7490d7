"""Describes LLaVA-1.5, which crops every picture to one size, so that each becomes the same number of tokens."""

from __future__ import annotations

from triptych.models.base import Checkpoint, Json, ModelFamily, Pictures
from triptych.models.precomputed import count_rule

# Checkpoints leave out values that are their config class's defaults. These are those of transformers 5.19:
# LlavaConfig, of vision towers CLIPVisionConfig and SiglipVisionConfig, of language models their own classes.
_IMAGE_TOKEN = 32000
_STRATEGY = "default"
_CLIP, _SIGLIP = "clip_vision_model", "siglip_vision_model"
_WHOLE_TOWER: Json = {"model_type": _CLIP, "image_size": 336, "patch_size": 14}
"""The vision config of checkpoints that have none."""
_TOWERS: dict[str, Json] = {
    _CLIP: {"image_size": 224, "patch_size": 32, "class_tokens": 1},
    _SIGLIP: {"image_size": 224, "patch_size": 16, "class_tokens": 0},
}
_HIDDEN_SIZES = {"llama": 4096, "mistral": 4096, "qwen2": 4096}


def tower(checkpoint: Checkpoint) -> Json:
    """Returns the vision tower's config with its class's defaults. Raises KeyError for an unknown tower."""
    stated: Json = checkpoint.config.get("vision_config") or _WHOLE_TOWER
    return {**_TOWERS[stated.get("model_type", _CLIP)], **stated}


def image_token(checkpoint: Checkpoint) -> int:
    """Returns the placeholder: ``image_token_index``, in newer checkpoints ``image_token_id``."""
    stated = {"image_token_id": _IMAGE_TOKEN, **checkpoint.config}
    return int(stated.get("image_token_index", stated["image_token_id"]))


def image_tokens(checkpoint: Checkpoint, width: int = 0, height: int = 0) -> int:
    """Returns the number of tokens of a picture of any size.

    Patches and the class token count, less the first of them for the strategy ``default``.
    """
    vision = tower(checkpoint)
    strategy = checkpoint.config.get("vision_feature_select_strategy", _STRATEGY)
    side = int(vision["image_size"]) // int(vision["patch_size"])
    skipped = 1 if strategy == "default" else 0
    return side * side + int(vision["class_tokens"]) - skipped


def embedding_width(checkpoint: Checkpoint) -> int:
    """Returns the language model's hidden size, which the projector's output has.

    Raises KeyError if no file states it.
    """
    config = checkpoint.text_config
    if "hidden_size" in config:
        return int(config["hidden_size"])
    nested = checkpoint.config.get("text_config") or {}
    return _HIDDEN_SIZES[nested.get("model_type", "llama")]


FAMILY = ModelFamily(
    name="llava",
    model_types=("llava",),
    pictures=Pictures(
        placeholder=image_token,
        text="<image>",
        tokens=lambda checkpoint, medium: image_tokens(checkpoint, medium.width, medium.height),
        precomputed=count_rule(image_tokens, image_tokens),
    ),
    embedding_width=embedding_width,
    towers=tuple(_TOWERS),
)
