"""A tiny LLaVA-1.6 of random weights, for ``support.reference.make_checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.llava_parts import language_model, replace_processors, sizes, tower

SIDE = 56
"""Pixels a side of a tile: 4 x 4 patches of 14."""
RESOLUTIONS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def model(folder: Path, **settings: Any) -> Any:
    """The model, not saved; its processor and tokenizer take the place of those in ``folder``."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    tokenizer = save_processor(folder)
    config = LlavaNextConfig(
        vision_config=tower(SIDE),
        text_config=language_model(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=RESOLUTIONS,
        tie_word_embeddings=False,
        dtype="float32",
        **settings,
    )
    return LlavaNextForConditionalGeneration(config)


def save_processor(folder: Path) -> Any:
    """Replace the processors by LLaVA-1.6's; returns the tokenizer, which has got ``<image>``."""
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    tokenizer, settings = replace_processors(folder, "<image>")
    pictures = LlavaNextImageProcessor(**sizes(SIDE), image_grid_pinpoints=RESOLUTIONS)
    LlavaNextProcessor(pictures, tokenizer, **settings).save_pretrained(folder)
    pictures.save_pretrained(folder)
    return tokenizer
