"""Builds the vision tower of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from triptych.engines.encoder.packed import pack_linears
from triptych.engines.encoder.towers.base import Build, Pixels, Run, Source, load_module

_CLASSES = {
    "qwen2_vl": "Qwen2VisionTransformerPretrainedModel",
    "qwen2_5_vl": "Qwen2_5_VisionTransformerPretrainedModel",
    "qwen3_vl": "Qwen3VLVisionModel",
    "qwen3_vl_moe": "Qwen3VLMoeVisionModel",
}
"""Tower classes of transformers, in the module of their model type."""


def _build(model_type: str, source: Source) -> Run:
    """Builds a tower that takes pictures of all sizes in one row of patches, which attention separates by their grids.

    A video is a grid of several steps in time, which attention separates as well.
    """
    import torch

    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    model_class = getattr(module, _CLASSES[model_type])
    config = source.config.vision_config
    tower = load_module(model_class, config, source, ("visual.", "model.visual."))
    tower.patch_embed = _as_linear(tower.patch_embed.proj)
    pack_linears(tower)
    merged = config.spatial_merge_size**2

    def run(batch: Sequence[Pixels]) -> list[Any]:
        # [patches, channels * frames * side * side]
        patches = torch.cat([_either(pixels, "pixel_values", "pixel_values_videos") for pixels in batch])
        grids = torch.cat([_either(pixels, "image_grid_thw", "video_grid_thw") for pixels in batch])  # [media, 3]
        output = tower(patches.to(source.device, source.dtype), grid_thw=grids.to(source.device))
        sizes = (grids.prod(-1) // merged).tolist()
        # What some layers say goes to layers of the language model, beside what the last one says.
        others = getattr(output, "deepstack_features", ())
        values = torch.cat([output.pooler_output, *others], dim=-1) if others else output.pooler_output
        return list(torch.split(values, sizes))  # of [tokens, hidden * (1 + others)]

    return run


def _either(pixels: Pixels, of_picture: str, of_video: str) -> Any:
    return pixels[of_picture] if of_picture in pixels else pixels[of_video]


def _as_linear(convolution: Any) -> Any:
    """Replaces a convolution that takes each patch once and as a whole by the same linear map of [patches, values].

    Such a convolution is a matrix product, for which torch's 3-D convolution takes 2.5 times as long (CPU, float32).
    """
    import torch

    weight = convolution.weight.flatten(1)  # [width, channels * frames * side * side]
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=convolution.bias is not None, device="meta")
    linear.weight, linear.bias = torch.nn.Parameter(weight), convolution.bias
    return linear


TOWERS: Mapping[str, Build] = {model_type: partial(_build, model_type) for model_type in _CLASSES}
