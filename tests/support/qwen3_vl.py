"""A tiny Qwen3-VL of random weights, dense or with experts; ``reference.make_checkpoint`` saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.demo import MODEL_DIR

PATCH = 16
PIXELS = {"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 48}
VIDEO_PIXELS = {"shortest_edge": 32 * 32 * 8, "longest_edge": 32 * 32 * 60}
"""Of all frames together."""
HIDDEN = 128
DEEPSTACK = (0, 1)
"""Layers of the vision part that speak to the language model besides the last one."""


def qwen3_vl(folder: Path, family: str) -> Any:
    """A model of ``family`` (``qwen3_vl``, ``qwen3_vl_moe``); its processors replace those in ``folder``.

    The tokenizer is the demo model's, and with it the ids of the placeholders.
    """
    import transformers

    _save_processor(folder)
    older = transformers.AutoConfig.from_pretrained(MODEL_DIR)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text = {
        "vocab_size": older.text_config.vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "bos_token_id": None,
        "eos_token_id": older.text_config.eos_token_id,
        "pad_token_id": older.text_config.pad_token_id,
        "tie_word_embeddings": False,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
    vision = {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 3,
        "out_hidden_size": HIDDEN,
        "patch_size": PATCH,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": list(DEEPSTACK),
    }
    name = "Qwen3VLMoe" if family == "qwen3_vl_moe" else "Qwen3VL"
    config = getattr(transformers, f"{name}Config")(
        text_config=text | (experts if family == "qwen3_vl_moe" else {}),
        vision_config=vision,
        tie_word_embeddings=False,
        dtype="float32",
        **{one: getattr(older, one) for one in names},
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _save_processor(folder: Path) -> None:
    from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    template = (folder / "chat_template.jinja").read_text()
    for path in [*folder.glob("*processor_config.json"), folder / "chat_template.jinja"]:
        path.unlink()
    pictures = Qwen2VLImageProcessor(patch_size=PATCH, size=PIXELS)
    films = Qwen3VLVideoProcessor(size=VIDEO_PIXELS, cap_pixels_per_frame=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    Qwen3VLProcessor(pictures, tokenizer, films, chat_template=template).save_pretrained(folder)
    pictures.save_pretrained(folder)
