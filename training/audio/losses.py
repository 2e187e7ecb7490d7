"""Computes what a training step minimises: wrong answers, and distance from the hints (pitch and number of each beep).

The heads that learn the hints are thrown away with the optimiser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import LayerNorm, Linear, ModuleList, Sequential
from torch.nn.functional import cross_entropy, gelu

from training.audio.batches import Batch, token_count
from triptych.demo.audio.clips import MAX_BEEPS, PITCHES

if TYPE_CHECKING:
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

COUNTING_LAYER = 2
"""The layer of the language model in which audio tokens learn the beep that they are part of."""


def make_heads(config: Qwen2AudioConfig) -> torch.nn.ModuleList:
    """Returns temporary heads that learn pitches and numbers from audio tokens."""
    width = config.text_config.hidden_size
    counting = Sequential(LayerNorm(width), Linear(width, MAX_BEEPS + 1))
    return ModuleList([Linear(width, len(PITCHES) + 1), counting])


def listen(model: Qwen2AudioForConditionalGeneration, features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Returns the audio tokens (T, width) of ``features`` (C, mel bins, F), whose first ``frames`` (C,) are sound.

    The model itself computes 30 s; this computes only the frames that there are. Nothing attends to the others.
    """
    tower = model.model.audio_tower
    hidden = gelu(tower.conv2(gelu(tower.conv1(features)))).transpose(1, 2)
    hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
    valid = torch.arange(hidden.shape[1]) < (frames[:, None] - 1) // 2 + 1
    mask = torch.zeros(valid.shape).masked_fill(~valid, float("-inf"))[:, None, None]
    mask = mask.expand(-1, -1, hidden.shape[1], -1)
    for layer in tower.layers:
        hidden = layer(hidden, mask)
    hidden = tower.layer_norm(tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2))
    tokens = torch.tensor([token_count(count) for count in frames.tolist()])
    kept = torch.arange(hidden.shape[1]) < tokens[:, None]
    found: torch.Tensor = model.model.multi_modal_projector(hidden)[kept]
    return found


def losses(
    model: Qwen2AudioForConditionalGeneration, heads: torch.nn.ModuleList, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Returns the cross-entropy over answer tokens, the loss of the hints, and the share of right tokens."""
    tokens, targets = torch.from_numpy(batch.table.tokens), torch.from_numpy(batch.table.targets)
    is_sound = tokens == model.config.audio_token_index
    sounds = listen(model, torch.from_numpy(batch.sounds.features), torch.from_numpy(batch.sounds.frames))
    output = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(tokens).masked_scatter(is_sound[..., None], sounds),
        attention_mask=torch.from_numpy(batch.table.visible)[:, None],
        position_ids=torch.from_numpy(batch.table.positions[0]),
        use_cache=False,
        output_hidden_states=True,
    )
    counting = heads[1](output.hidden_states[COUNTING_LAYER][is_sound])
    hint = cross_entropy(heads[0](sounds), torch.from_numpy(batch.sounds.pitch))
    hint = hint + cross_entropy(counting, torch.from_numpy(batch.sounds.beep))
    asked = targets >= 0
    logits = model.lm_head(output.last_hidden_state[asked])
    right = (logits.argmax(-1) == targets[asked]).float().mean().item()
    return cross_entropy(logits, targets[asked]), hint, right
