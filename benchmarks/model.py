"""Makes the models that are served. Their weights are random, so that every answer has the length that was asked
for.

A trained model ends its answer, and repeats tokens without text if it must go on; such streams cannot be timed. So
the demo model's shapes get random weights, of a spread at which greedy tokens vary, and the rows of the output layer
for tokens that are not plain text are zero: such a token is never the most likely one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

_SPREAD = 0.08
_CONFIG_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "processor_config.json", "preprocessor_config.json"),
)


def make_random(template: Path, folder: Path, seed: int = 0) -> Path:
    """Returns a copy of the checkpoint ``template`` with random weights and an output layer of its own."""
    import torch
    from safetensors.torch import load_file, save_file

    copy_configuration(template, folder)
    config = json.loads((folder / "config.json").read_text())
    _untie(config)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    torch.manual_seed(seed)
    tensors = load_file(template / "model.safetensors")
    # Vectors (norms, biases) stay: they are 1 and 0 or near it.
    drawn = {name: torch.randn_like(t) * _SPREAD if t.dim() > 1 else t for name, t in tensors.items()}
    head = torch.randn_like(tensors["model.embed_tokens.weight"])  # [vocabulary, hidden]
    head[_without_text(template, len(head))] = 0.0
    save_file(drawn | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def widen_tower(template: Path, folder: Path, depth: int, width: int, heads: int) -> Path:
    """Returns a copy of the Qwen2-VL checkpoint ``template`` with other sizes of the vision tower, and initial weights.

    It sees pictures of up to 224 x 224 pixels as they are.
    """
    from transformers import AutoConfig, Qwen2VLForConditionalGeneration

    copy_configuration(template, folder)
    config = AutoConfig.from_pretrained(template)
    tower = config.vision_config
    tower.depth, tower.embed_dim, tower.num_heads = depth, width, heads
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.get("image_processor", settings)["size"] = {"shortest_edge": 56 * 56, "longest_edge": 224 * 224}
        (folder / name).write_text(json.dumps(settings))
    return folder


def copy_configuration(template: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in _CONFIG_FILES:
        if (template / name).exists():
            shutil.copy(template / name, folder / name)


def _untie(config: dict[str, Any]) -> None:
    config["tie_word_embeddings"] = False
    if "text_config" in config:
        config["text_config"]["tie_word_embeddings"] = False


def _without_text(template: Path, size: int) -> list[int]:
    """Returns the ids of special tokens and of parts of characters: all but printable ASCII."""
    tokenizer = json.loads((template / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    plain = {
        number
        for text, number in tokenizer["model"]["vocab"].items()
        if text.removeprefix("Ġ").isascii() and text.removeprefix("Ġ")
    }
    return [number for number in range(size) if number in special or number not in plain]
