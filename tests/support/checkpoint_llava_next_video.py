"""A tiny LLaVA-NeXT-Video of random weights, for ``support.reference.make_checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIDE = 196
"""Pixels a side of a frame: 14 x 14 patches of 14, of which pooling makes 49 tokens. vLLM's model divides by a square
of 14 pixels, and takes no smaller ones."""
FRAMES = 8


def model(folder: Path) -> Any:
    """The model, not saved; its processor and tokenizer take the place of those in ``folder``."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
    )

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
    config = LlavaNextVideoConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        tie_word_embeddings=False,
        dtype="float32",
    )
    return LlavaNextVideoForConditionalGeneration(config)


def save_processor(folder: Path) -> Any:
    """Replace the processors by LLaVA-NeXT-Video's; returns the tokenizer, which has got ``<video>``."""
    from transformers import (
        AutoTokenizer,
        LlavaNextImageProcessor,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    template = (folder / "chat_template.jinja").read_text()
    for path in [*folder.glob("*processor_config.json"), folder / "chat_template.jinja"]:
        path.unlink()
    sizes: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**sizes, num_frames=FRAMES),
        LlavaNextImageProcessor(**sizes),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\\n").replace(
            "<|vision_start|><|video_pad|><|vision_end|>", "<video>\\n"
        ),
    ).save_pretrained(folder)
    return tokenizer
