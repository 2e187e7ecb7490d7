"""Makes the checkpoint for sounds except for its trained weights: tokenizer, processor and config."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from training.vocabulary import SYSTEM_PROMPT, build_tokenizer, chat_template
from triptych.demo.audio.beeps import KINDS, ask
from triptych.demo.audio.clips import make_clip

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2AudioConfig, Qwen2AudioProcessor

SPECIAL_TOKENS = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
MEL_BINS = 64
POSITIONS = 1500
"""The number of positions: one for two mel frames of 30 s. vLLM supports no other number."""
_SAVED, _PUBLISHED = "language_model.model.model.", "language_model.model."


def corpus(clips: int = 3000) -> Iterator[str]:
    """Yields the texts from which the vocabulary is learned; they are the same on every run."""
    rng = random.Random(1)
    for _ in range(clips):
        yield from ("system", "user", "assistant", SYSTEM_PROMPT)
        clip = make_clip(rng)
        for kind in KINDS:
            question, answer = ask(clip, kind, rng)
            yield from (question, question.lower(), answer)


def build_processor() -> Qwen2AudioProcessor:
    """Returns the processor: tokenizer, feature extractor and chat template."""
    from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

    return Qwen2AudioProcessor(
        WhisperFeatureExtractor(feature_size=MEL_BINS, return_attention_mask=True),
        build_tokenizer(corpus(), SPECIAL_TOKENS),
        chat_template=chat_template({"audio": "".join(SPECIAL_TOKENS)}),
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2AudioConfig:
    """Returns the config of a Qwen2-Audio with about a million parameters."""
    from transformers import Qwen2AudioConfig

    ids = tokenizer.convert_tokens_to_ids
    ends = {
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
    }
    audio = {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": MEL_BINS,
        "max_source_positions": POSITIONS,
        "d_model": 96,
        "encoder_layers": 2,
        "encoder_attention_heads": 3,
        "encoder_ffn_dim": 192,
    }
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        # A low base: a clip spans a hundred positions, in which single beeps must be told apart.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        "tie_word_embeddings": False,
        **ends,
    }
    return Qwen2AudioConfig(
        audio_config=audio, text_config=text, audio_token_index=ids("<|AUDIO|>"), dtype="float32", **ends
    )


def publish_names(folder: Path) -> None:
    """Names the language model's weights in ``folder`` as published checkpoints do; transformers 5 uses other names."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {
        f"{_PUBLISHED}{name.removeprefix(_SAVED)}" if name.startswith(_SAVED) else name: tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
