"""Builds the audio tower of Qwen2-Audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triptych.engines.encoder.packed import pack_linears
from triptych.engines.encoder.towers.base import Build, Pixels, Run, Source, load_module, load_projector


def build(source: Source) -> Run:
    """Builds a tower for sounds padded with silence to one length. Attention ignores the padding; its tokens go."""
    import torch
    from transformers.models.qwen2_audio.modeling_qwen2_audio import (
        Qwen2AudioEncoder,
        Qwen2AudioMultiModalProjector,
    )

    tower = pack_linears(
        load_module(Qwen2AudioEncoder, source.config.audio_config, source, ("audio_tower.", "model.audio_tower."))
    )
    projector = pack_linears(load_projector(Qwen2AudioMultiModalProjector(source.config), source))

    def run(batch: Sequence[Pixels]) -> list[Any]:
        features = torch.cat([pixels["input_features"] for pixels in batch])  # [sounds, mel bins, frames]
        frames = torch.cat([pixels["attention_mask"] for pixels in batch]).sum(-1)  # [sounds], of sound
        lengths, tokens = tower._get_feat_extract_output_lengths(frames)
        positions = torch.arange(tower.config.max_source_positions)
        silence = (positions >= lengths[:, None])[:, None, None].to(source.device)  # [sounds, 1, 1, positions]
        mask = torch.zeros(silence.shape, dtype=source.dtype, device=source.device)
        mask.masked_fill_(silence, torch.finfo(source.dtype).min)
        states = tower(features.to(source.device, source.dtype), attention_mask=mask).last_hidden_state
        projected = projector(states)  # [sounds, tokens of the whole length, hidden]
        # Copies: an embedding's memory is handed out, and must not keep the batch's.
        return [embedding[:count].clone() for embedding, count in zip(projected, tokens.tolist(), strict=True)]

    return run


TOWERS: Mapping[str, Build] = {"qwen2_audio": build}
