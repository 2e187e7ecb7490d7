"""What the tiny LLaVAs of all generations have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PATCH = 14


def tower(side: int) -> Any:
    """The config of a CLIP tower, of which LLaVA does not use the last layer, for pictures of ``side`` pixels."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=side,
        patch_size=PATCH,
        projection_dim=96,
    )


def language_model(tokenizer: Any) -> Any:
    """The config of a Llama."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def replace_processors(folder: Path, *placeholders: str) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of ``folder``, which gets ``placeholders``, and settings of a LLaVA's processor.

    The files of the demo's own processors are removed; its chat template says the LLaVAs' placeholders.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(placeholders), special_tokens=True)
    template = (folder / "chat_template.jinja").read_text()
    for path in [*folder.glob("*processor_config.json"), folder / "chat_template.jinja"]:
        path.unlink()
    for kind in ("image", "video"):
        if f"<{kind}>" in placeholders:
            template = template.replace(f"<|vision_start|><|{kind}_pad|><|vision_end|>", f"<{kind}>\\n")
    settings = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": template,
    }
    return tokenizer, settings


def sizes(side: int) -> dict[str, Any]:
    """Settings of an image processor that crops to a square of ``side`` pixels."""
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
