"""Builds the vision tower of LLaVA-1.5, and the parts that LLaVA-1.6 shares with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triptych.engines.encoder.packed import pack_linears
from triptych.engines.encoder.towers.base import Build, Pixels, Run, Source, load_module, load_projector


def build(source: Source) -> Run:
    """Builds a tower whose hidden states of chosen layers are projected. All pictures have one size."""
    import torch

    tower, projector, select = parts_of(source)

    def run(batch: Sequence[Pixels]) -> list[Any]:
        pictures = torch.cat([pixels["pixel_values"] for pixels in batch])  # [pictures, channels, side, side]
        states = tower(pictures.to(source.device, source.dtype), output_hidden_states=True).hidden_states
        return list(projector(select(states)))  # of [tokens, hidden]

    return run


def parts_of(source: Source) -> tuple[Any, Any, Callable[[Any], Any]]:
    """Returns (tower, projector, function from the tower's hidden states to the projector's input [pictures, tokens,
    width]).
    """
    import torch
    from transformers import MODEL_MAPPING
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = source.config
    tower_config = config.vision_config
    layers = _absolute(config.vision_feature_layer, tower_config.num_hidden_layers)
    tower_config.num_hidden_layers = max(layers)  # those above are never looked at
    prefixes = ("vision_tower.", "model.vision_tower.")
    unused = ("post_layernorm.", "head.")
    tower = pack_linears(load_module(MODEL_MAPPING[type(tower_config)], tower_config, source, prefixes, unused))
    projector = pack_linears(load_projector(LlavaMultiModalProjector(config), source))
    skipped = 1 if config.vision_feature_select_strategy == "default" else 0

    def select(states: Sequence[Any]) -> Any:
        return torch.cat([states[layer][:, skipped:] for layer in layers], dim=-1)

    return tower, projector, select


def _absolute(layers: int | Sequence[int], count: int) -> list[int]:
    """Returns indices, none negative, into the hidden states of a tower of ``count`` layers; 0 is before the first."""
    stated = [layers] if isinstance(layers, int) else list(layers)
    return [layer if layer >= 0 else count + 1 + layer for layer in stated]


TOWERS: Mapping[str, Build] = {"llava": build}
