"""Computes what a training step minimises: wrong answers, and distance from the hints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import LayerNorm, Linear, ModuleList, Sequential

from training.hints import CHANNELS, hint_loss, place_loss, point_loss
from training.rows import Batch, Pictures
from training.tower import look

if TYPE_CHECKING:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

NAMING_LAYERS = (2, 3)  # of the language model, that find the shape a word names
PLACING_LAYERS = (1, 2)  # of the language model, whose picture tokens learn where they are


def make_heads(config: Qwen2VLConfig) -> torch.nn.ModuleList:
    """Returns temporary heads that learn the hints from patches and from picture tokens."""
    width, tokens_width = config.vision_config.embed_dim, config.vision_config.hidden_size
    looking = [Sequential(LayerNorm(width), Linear(width, CHANNELS)), Linear(tokens_width, CHANNELS)]
    placing = [Sequential(LayerNorm(tokens_width), Linear(tokens_width, 2)) for _ in range(5)]
    return ModuleList(looking + placing)


def see(
    model: Qwen2VLForConditionalGeneration, heads: torch.nn.ModuleList, pictures: Pictures
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the picture tokens (P / 4, width), and the loss of the heads against the hints."""
    patches = torch.from_numpy(pictures.patches)
    hidden, tokens = look(model.model.visual, patches, pictures.grid, pictures.count)
    loss = hint_loss(heads[0](hidden), pictures.patch_hints)
    return tokens, loss + hint_loss(heads[1](tokens), pictures.cell_hints)


def read(
    model: Qwen2VLForConditionalGeneration,
    heads: torch.nn.ModuleList,
    pictures: torch.Tensor,
    batch: Batch,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Returns the cross-entropy over answer tokens, the loss of the hints, and the share of right tokens.

    The vision tower knows relative positions only, so it is the language model's first
    layers that must tell each picture token where it is.
    """
    tokens, targets = torch.from_numpy(batch.table.tokens), torch.from_numpy(batch.table.targets)
    shown = (tokens == model.config.image_token_id) | (tokens == model.config.video_token_id)
    output = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(tokens).masked_scatter(shown[..., None], pictures),
        attention_mask=torch.from_numpy(batch.table.visible)[:, None],
        position_ids=torch.from_numpy(batch.table.positions),
        use_cache=False,
        output_hidden_states=True,
    )
    place = sum(
        place_loss(head(output.hidden_states[layer][shown]), batch.pictures.cell_hints)
        for layer, head in zip(PLACING_LAYERS, heads[2:4], strict=True)
    )
    point = sum(
        point_loss(head(output.hidden_states[layer]), batch.named)
        for layer, head in zip(NAMING_LAYERS, heads[4:6], strict=True)
    )
    point = point + point_loss(heads[6](output.hidden_states[NAMING_LAYERS[-1]]), batch.apart)
    asked = targets >= 0
    logits = model.lm_head(output.last_hidden_state[asked])
    loss = torch.nn.functional.cross_entropy(logits, targets[asked])
    return loss, place + point, (logits.argmax(-1) == targets[asked]).float().mean().item()
