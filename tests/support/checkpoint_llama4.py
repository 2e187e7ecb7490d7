"""A tiny Llama 4 of random weights, for ``support.reference.make_checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIDE = 56
"""Pixels a side of a tile: 4 x 4 patches of 14, of which pixel shuffle makes 4 tokens."""
MAX_TILES = 6
WIDTH = 96
"""Of the vision tower."""
TOKENS = ("<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>")


def model(folder: Path) -> Any:
    """The model, not saved; its processor and tokenizer take the place of those in ``folder``."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    tokenizer = save_processor(folder)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 128,
        "intermediate_size_mlp": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 2,
        "interleave_moe_layer_step": 2,
        "max_position_embeddings": 4096,
        "attention_chunk_size": 4096,
        "dtype": "float32",
        **ends,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "vision_output_dim": WIDTH,
        "projector_input_dim": WIDTH,
        "projector_output_dim": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": 14,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "dtype": "float32",
    }
    ids = dict(zip(TOKENS, tokenizer.convert_tokens_to_ids(list(TOKENS)), strict=True))
    config = Llama4Config(
        text_config=text,
        vision_config=vision,
        boi_token_index=ids["<|image_start|>"],
        eoi_token_index=ids["<|image_end|>"],
        image_token_index=ids["<|patch|>"],
        tie_word_embeddings=False,
        dtype="float32",
    )
    return Llama4ForConditionalGeneration(config)


def save_processor(folder: Path) -> Any:
    """Replace the processors by Llama 4's; returns the tokenizer, which has got the tokens around pictures."""
    from transformers import AutoTokenizer, Llama4ImageProcessor, Llama4Processor

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    template = (folder / "chat_template.jinja").read_text()
    for path in [*folder.glob("*processor_config.json"), folder / "chat_template.jinja"]:
        path.unlink()
    pictures = Llama4ImageProcessor(size={"height": SIDE, "width": SIDE}, max_patches=MAX_TILES)
    Llama4Processor(
        pictures,
        tokenizer,
        patch_size=14,
        chat_template=template.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image|>"),
    ).save_pretrained(folder)
    pictures.save_pretrained(folder)
    return tokenizer
