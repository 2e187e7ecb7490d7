"""A tiny LLaVA-NeXT-Video of random weights, for ``support.reference.make_checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.llava_parts import language_model, replace_processors, sizes, tower

SIDE = 196
"""Pixels a side of a frame: 14 x 14 patches of 14, of which pooling makes 49 tokens. vLLM's model divides by a square
of 14 pixels, and takes no smaller ones."""
FRAMES = 8


def model(folder: Path) -> Any:
    """The model, not saved; its processor and tokenizer take the place of those in ``folder``."""
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    tokenizer = save_processor(folder)
    config = LlavaNextVideoConfig(
        vision_config=tower(SIDE),
        text_config=language_model(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        tie_word_embeddings=False,
        dtype="float32",
    )
    return LlavaNextVideoForConditionalGeneration(config)


def save_processor(folder: Path) -> Any:
    """Replace the processors by LLaVA-NeXT-Video's; returns the tokenizer, which has got ``<video>``."""
    from transformers import LlavaNextImageProcessor, LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

    tokenizer, settings = replace_processors(folder, "<image>", "<video>")
    videos = LlavaNextVideoVideoProcessor(**sizes(SIDE), num_frames=FRAMES)
    pictures = LlavaNextImageProcessor(**sizes(SIDE))
    LlavaNextVideoProcessor(videos, pictures, tokenizer, **settings).save_pretrained(folder)
    return tokenizer
