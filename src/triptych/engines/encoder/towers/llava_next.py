"""Builds the vision tower of LLaVA-1.6 (LLaVA-NeXT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triptych.contracts.errors import ConfigError
from triptych.engines.encoder.towers.base import Build, Pixels, Run, Source
from triptych.engines.encoder.towers.llava import parts_of
from triptych.models.llava_next import best_resolution, padding


def build(source: Source) -> Run:
    """Builds a tower that encodes tiles as LLaVA does, puts them together, cuts the padding off and ends the rows."""
    import torch

    tower, projector, select = parts_of(source)
    newline = source.weights.under(("image_newline", "model.image_newline")).get("")
    if newline is None:
        raise ConfigError("the checkpoint lacks weights of its encoder: image_newline")
    newline = newline.to(source.device, source.dtype)  # [hidden]
    config = source.config
    side = config.vision_config.image_size // config.vision_config.patch_size

    def run(batch: Sequence[Pixels]) -> list[Any]:
        tiles = torch.cat([pixels["pixel_values"][0] for pixels in batch])  # [tiles, channels, side, side]
        states = tower(tiles.to(source.device, source.dtype), output_hidden_states=True).hidden_states
        counts = [pixels["pixel_values"].shape[1] for pixels in batch]
        pictures = torch.split(projector(select(states)), counts)  # of [tiles, patches, hidden]
        sizes = [pixels["image_sizes"][0].tolist() for pixels in batch]
        return [whole(tiles, *size) for tiles, size in zip(pictures, sizes, strict=True)]

    def whole(tiles: Any, height: int, width: int) -> Any:
        """Encodes a picture of ``height`` x ``width`` pixels: [tokens, hidden]."""
        high, wide = best_resolution(config.image_grid_pinpoints, width, height)
        down, across = high // config.vision_config.image_size, wide // config.vision_config.image_size
        rows = tiles[1:].view(down, across, side, side, -1).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        above, beside = padding(rows.shape[0], rows.shape[1], width, height)
        rows = rows[above : len(rows) - above, beside : rows.shape[1] - beside]  # [rows, columns, hidden]
        ended = torch.cat([rows, newline.expand(len(rows), 1, -1)], dim=1)
        return torch.cat([tiles[0], ended.flatten(0, 1)])

    return run


TOWERS: Mapping[str, Build] = {"llava_next": build}
