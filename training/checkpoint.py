"""Makes the demo checkpoint except for its trained weights: tokenizer, processor and config."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from training.vocabulary import SYSTEM_PROMPT, build_tokenizer, chat_template
from triptych.demo.pictures.scenes import make_scene
from triptych.demo.pictures.shapes import KINDS, ask
from triptych.demo.video import moves
from triptych.demo.video.films import make_film

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLProcessor

SPECIAL_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PIXELS = 112 * 112  # pictures and frames are resized to about the trained size, 16 tokens
_PLACEHOLDERS = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
}


def load_vision_operators() -> None:
    """Declares the operators torchvision's Python side asks for when its C part is missing.

    A CUDA build of torchvision beside a CPU build of torch fails on import otherwise.
    """
    import torch

    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            torch.library.define(f"torchvision::{name}", schema)


def corpus(scenes: int = 6000) -> Iterator[str]:
    """Yields the texts from which the vocabulary is learned; they are the same on every run."""
    rng = random.Random(1)
    for _ in range(scenes):
        yield from ("system", "user", "assistant", SYSTEM_PROMPT)
        scene, film = make_scene(rng), make_film(rng)
        pairs = [ask(scene, kind, rng) or ("", "") for kind in KINDS]
        for question, answer in (*pairs, *(moves.ask(film, kind, rng) for kind in moves.KINDS)):
            yield from (question, question.lower(), answer)


def build_processor() -> Qwen2VLProcessor:
    """Returns the processor: tokenizer, picture and film processors, and chat template."""
    load_vision_operators()
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size)),
        tokenizer=build_tokenizer(corpus(), SPECIAL_TOKENS),
        # False is the current default; it is set so that transformers does not warn.
        video_processor=Qwen2VLVideoProcessor(size=dict(size), cap_pixels_per_frame=False),
        chat_template=chat_template(_PLACEHOLDERS),
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    """Returns the config of a Qwen2-VL with about 1.4 million parameters."""
    from transformers import Qwen2VLConfig

    ids = tokenizer.convert_tokens_to_ids
    end = {"bos_token_id": ids("<|endoftext|>"), "eos_token_id": ids("<|im_end|>")}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "pad_token_id": ids("<|endoftext|>"),
        "tie_word_embeddings": True,
        # A low base: pictures span a few positions only, so frequencies must be high
        # for the row and column parts to tell neighbouring patches apart.
        "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [4, 6, 6]},
        **end,
    }
    vision = {
        "embed_dim": 96,
        "depth": 3,
        "num_heads": 3,
        "mlp_ratio": 4,
        "hidden_size": 128,
        "in_channels": 3,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
        **end,
    )
