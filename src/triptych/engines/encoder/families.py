"""How the vision or audio part of each architecture is built from a checkpoint, and run on a batch of media."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.contracts.errors import ConfigError
from triptych.engines.encoder.packed import pack_linears
from triptych.engines.encoder.weights import Weights
from triptych.models.llava_next import best_resolution, padding

Pixels = dict[str, Any]
"""What the model's own processor makes of one picture or sound: tensors by name."""
Run = Callable[[Sequence[Pixels]], list[Any]]
"""A batch of media -> for each, its embedding [tokens, hidden] on the model's device."""


@dataclass(frozen=True)
class Source:
    """What a vision part is built from."""

    config: Any
    """The checkpoint's config as transformers' own config class."""
    weights: Weights
    dtype: Any
    device: Any


def loader(model_type: str) -> Callable[[Source], Run]:
    """What builds the vision part of a ``model_type`` checkpoint. Raises ConfigError listing the known types."""
    if model_type not in _LOADERS:
        known = ", ".join(sorted(_LOADERS))
        raise ConfigError(
            f"the encoder engine does not know models of type {model_type!r}; known: {known}; "
            "encode with the engine that runs the language model (--engine vllm)"
        )
    return _LOADERS[model_type]


def _qwen2_vl(source: Source) -> Run:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    return _qwen(source, Qwen2VisionTransformerPretrainedModel)


def _qwen2_5_vl(source: Source) -> Run:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    return _qwen(source, Qwen2_5_VisionTransformerPretrainedModel)


def _qwen3_vl(source: Source) -> Run:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    return _qwen(source, Qwen3VLVisionModel)


def _qwen3_vl_moe(source: Source) -> Run:
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeVisionModel

    return _qwen(source, Qwen3VLMoeVisionModel)


def _qwen(source: Source, model_class: Any) -> Run:
    """Pictures of all sizes go through in one row of patches; attention keeps them apart by their grids.

    A video is a grid of several steps in time, which attention keeps apart as well.
    """
    import torch

    config = source.config.vision_config
    tower = _module(model_class, config, source, ("visual.", "model.visual."))
    tower.patch_embed = _as_linear(tower.patch_embed.proj)
    pack_linears(tower)
    merged = config.spatial_merge_size**2

    def run(batch: Sequence[Pixels]) -> list[Any]:
        # [patches, channels * frames * side * side]
        patches = torch.cat([_either(one, "pixel_values", "pixel_values_videos") for one in batch])
        grids = torch.cat([_either(one, "image_grid_thw", "video_grid_thw") for one in batch])  # [media, 3]
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
    """The same map of patches [patches, values] for a convolution that takes each patch once, and as a whole.

    A matrix product is what it is; torch's 3-D convolution takes 2.5 times as long for it (CPU, float32).
    """
    import torch

    weight = convolution.weight.flatten(1)  # [width, channels * frames * side * side]
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=convolution.bias is not None, device="meta")
    linear.weight, linear.bias = torch.nn.Parameter(weight), convolution.bias
    return linear


def _llava(source: Source) -> Run:
    """A tower whose hidden states of chosen layers are projected; pictures are all of one size."""
    import torch

    tower, projector, select = _llava_parts(source)

    def run(batch: Sequence[Pixels]) -> list[Any]:
        pictures = torch.cat([one["pixel_values"] for one in batch])  # [pictures, channels, side, side]
        states = tower(pictures.to(source.device, source.dtype), output_hidden_states=True).hidden_states
        return list(projector(select(states)))  # of [tokens, hidden]

    return run


def _llava_next(source: Source) -> Run:
    """The same for tiles of a picture, which are then put together, without the padding and with ends of rows."""
    import torch

    tower, projector, select = _llava_parts(source)
    newline = source.weights.under(("image_newline", "model.image_newline")).get("")
    if newline is None:
        raise ConfigError("the checkpoint lacks weights of its encoder: image_newline")
    newline = newline.to(source.device, source.dtype)  # [hidden]
    config = source.config
    side = config.vision_config.image_size // config.vision_config.patch_size

    def run(batch: Sequence[Pixels]) -> list[Any]:
        tiles = torch.cat([one["pixel_values"][0] for one in batch])  # [tiles, channels, side, side]
        states = tower(tiles.to(source.device, source.dtype), output_hidden_states=True).hidden_states
        counts = [one["pixel_values"].shape[1] for one in batch]
        pictures = torch.split(projector(select(states)), counts)  # of [tiles, patches, hidden]
        sizes = [one["image_sizes"][0].tolist() for one in batch]
        return [whole(one, *size) for one, size in zip(pictures, sizes, strict=True)]

    def whole(tiles: Any, height: int, width: int) -> Any:
        """Of a picture of ``height`` x ``width`` pixels: [tokens, hidden]."""
        high, wide = best_resolution(config.image_grid_pinpoints, width, height)
        down, across = high // config.vision_config.image_size, wide // config.vision_config.image_size
        rows = tiles[1:].view(down, across, side, side, -1).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        above, beside = padding(rows.shape[0], rows.shape[1], width, height)
        rows = rows[above : len(rows) - above, beside : rows.shape[1] - beside]  # [rows, columns, hidden]
        ended = torch.cat([rows, newline.expand(len(rows), 1, -1)], dim=1)
        return torch.cat([tiles[0], ended.flatten(0, 1)])

    return run


def _llava_parts(source: Source) -> tuple[Any, Any, Callable[[Any], Any]]:
    """(tower, projector, what makes of the tower's hidden states the projector's input [pictures, tokens, width])"""
    import torch
    from transformers import MODEL_MAPPING
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = source.config
    tower_config = config.vision_config
    layers = _absolute(config.vision_feature_layer, tower_config.num_hidden_layers)
    tower_config.num_hidden_layers = max(layers)  # those above are never looked at
    prefixes = ("vision_tower.", "model.vision_tower.")
    unused = ("post_layernorm.", "head.")
    tower = pack_linears(_module(MODEL_MAPPING[type(tower_config)], tower_config, source, prefixes, unused))
    projector = pack_linears(_projector(LlavaMultiModalProjector(config), source))
    skipped = 1 if config.vision_feature_select_strategy == "default" else 0

    def select(states: Sequence[Any]) -> Any:
        return torch.cat([states[layer][:, skipped:] for layer in layers], dim=-1)

    return tower, projector, select


def _qwen2_audio(source: Source) -> Run:
    """Sounds are all of one length, padded with silence, which attention does not see and whose tokens are dropped."""
    import torch
    from transformers.models.qwen2_audio.modeling_qwen2_audio import (
        Qwen2AudioEncoder,
        Qwen2AudioMultiModalProjector,
    )

    tower = pack_linears(
        _module(Qwen2AudioEncoder, source.config.audio_config, source, ("audio_tower.", "model.audio_tower."))
    )
    projector = pack_linears(_projector(Qwen2AudioMultiModalProjector(source.config), source))

    def run(batch: Sequence[Pixels]) -> list[Any]:
        features = torch.cat([one["input_features"] for one in batch])  # [sounds, mel bins, frames]
        frames = torch.cat([one["attention_mask"] for one in batch]).sum(-1)  # [sounds], of sound
        lengths, tokens = tower._get_feat_extract_output_lengths(frames)
        positions = torch.arange(tower.config.max_source_positions)
        silence = (positions >= lengths[:, None])[:, None, None].to(source.device)  # [sounds, 1, 1, positions]
        mask = torch.zeros(silence.shape, dtype=source.dtype, device=source.device)
        mask.masked_fill_(silence, torch.finfo(source.dtype).min)
        states = tower(features.to(source.device, source.dtype), attention_mask=mask).last_hidden_state
        projected = projector(states)  # [sounds, tokens of the whole length, hidden]
        # Copies: an embedding's memory is handed out, and must not keep the batch's.
        return [one[:count].clone() for one, count in zip(projected, tokens.tolist(), strict=True)]

    return run


def _absolute(layers: int | Sequence[int], count: int) -> list[int]:
    """Indices into the hidden states of a tower of ``count`` layers (0: before the first), none negative."""
    stated = [layers] if isinstance(layers, int) else list(layers)
    return [layer if layer >= 0 else count + 1 + layer for layer in stated]


def _module(
    model_class: Any, config: Any, source: Source, prefixes: Sequence[str], unused: tuple[str, ...] = ()
) -> Any:
    """A transformers model with exactly the tensors under ``prefixes``. Raises ConfigError naming missing ones."""
    tensors = source.weights.under(prefixes)
    try:
        module, report = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=source.dtype, output_loading_info=True
        )
    except RuntimeError as error:  # its way to say that shapes do not fit
        raise ConfigError(f"weights under {prefixes[0]} do not fit the config: {str(error).splitlines()[0]}") from error
    _require_none(prefixes[0], (name for name in report["missing_keys"] if not name.startswith(unused)))
    return module.to(source.device).eval()


def _projector(module: Any, source: Source) -> Any:
    prefixes = ("multi_modal_projector.", "model.multi_modal_projector.")
    try:
        report = module.load_state_dict(source.weights.under(prefixes), strict=False)
    except RuntimeError as error:
        raise ConfigError(f"weights under {prefixes[0]} do not fit the config: {error}".replace("\n", " ")) from error
    _require_none(prefixes[0], report.missing_keys)
    return module.to(source.device, source.dtype).eval()


def _require_none(prefix: str, missing: Any) -> None:
    names = sorted(f"{prefix}{name}" for name in missing)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ConfigError(f"the checkpoint lacks weights of its encoder: {', '.join(names[:5])}{more}")


_LOADERS: dict[str, Callable[[Source], Run]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_audio": _qwen2_audio,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
}
