"""A tiny LLaVA-1.5 of random weights, for ``support.reference.make_checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.llava_parts import language_model, replace_processors, sizes, tower

SIDE = 84
"""Pixels a side of the pictures that it sees: 6 x 6 patches of 14."""


def model(folder: Path, **settings: Any) -> Any:
    """The model, not saved; its processor and tokenizer take the place of those in ``folder``."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = save_processor(folder)
    config = LlavaConfig(
        vision_config=tower(SIDE),
        text_config=language_model(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=36,
        dtype="float32",
        **settings,
    )
    return LlavaForConditionalGeneration(config)


def save_processor(folder: Path) -> Any:
    """Replace the processors by LLaVA-1.5's; returns the tokenizer, which has got ``<image>``."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    tokenizer, settings = replace_processors(folder, "<image>")
    pictures = CLIPImageProcessor(**sizes(SIDE))
    LlavaProcessor(pictures, tokenizer, **settings).save_pretrained(folder)
    pictures.save_pretrained(folder)
    return tokenizer
