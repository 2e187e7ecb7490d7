"""A tiny LLaVA-1.6 of random weights, for ``support.reference.make_checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIDE = 56
"""Pixels a side of a tile: 4 x 4 patches of 14."""
RESOLUTIONS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def model(folder: Path, **settings: Any) -> Any:
    """The model, not saved; its processor and tokenizer take the place of those in ``folder``."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    tokenizer = save_processor(folder)
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=14,
        projection_dim=96,
    )
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10.0},
        tie_word_embeddings=False,
        **ends,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=RESOLUTIONS,
        tie_word_embeddings=False,
        dtype="float32",
        **settings,
    )
    return LlavaNextForConditionalGeneration(config)


def save_processor(folder: Path) -> Any:
    """Replace the processors by LLaVA-1.6's; returns the tokenizer, which has got ``<image>``."""
    from transformers import AutoTokenizer, LlavaNextImageProcessor, LlavaNextProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    template = (folder / "chat_template.jinja").read_text()
    for path in [*folder.glob("*processor_config.json"), folder / "chat_template.jinja"]:
        path.unlink()
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=RESOLUTIONS
    )
    LlavaNextProcessor(
        pictures,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\\n"),
    ).save_pretrained(folder)
    pictures.save_pretrained(folder)
    return tokenizer
