"""Maps a checkpoint's ``model_type`` to the tower that encodes its media."""

from __future__ import annotations

from collections.abc import Mapping

from triptych.contracts.errors import ConfigError
from triptych.engines.encoder.towers import llava, llava_next, qwen2_audio, qwen_vl
from triptych.engines.encoder.towers.base import Build

TOWERS: Mapping[str, Build] = {
    **llava.TOWERS,
    **llava_next.TOWERS,
    **qwen2_audio.TOWERS,
    **qwen_vl.TOWERS,
}


def builder(model_type: str) -> Build:
    """Returns the builder of towers for ``model_type`` checkpoints. Raises ConfigError, with a list of known types."""
    if model_type not in TOWERS:
        known = ", ".join(sorted(TOWERS))
        raise ConfigError(
            f"the encoder engine does not know models of type {model_type!r}; known: {known}; "
            "encode with the engine that runs the language model (--engine vllm)"
        )
    return TOWERS[model_type]
