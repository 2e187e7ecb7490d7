"""What the answers are measured against: transformers' own ``generate`` on the same weights."""

from __future__ import annotations

import json
import random
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from triptych.demo import MODEL_DIR

SPREAD = 0.12
"""Standard deviation of the random weights: with the usual 0.02 greedy decoding repeats one token."""
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}


def make_checkpoint(folder: Path) -> Path:
    """Save a Qwen2-VL of random weights with the demo model's tokenizer, template and processors."""
    import torch
    from transformers import AutoConfig, Qwen2VLForConditionalGeneration

    shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    config = AutoConfig.from_pretrained(MODEL_DIR)
    config.tie_word_embeddings = False
    config.text_config.tie_word_embeddings = False
    config.text_config.num_hidden_layers, config.text_config.layer_types = 2, ["full_attention"] * 2
    config.vision_config.depth = 2
    torch.manual_seed(7)
    model = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, SPREAD)
    model.save_pretrained(folder)
    _allow_more_pixels(folder / "processor_config.json")
    return folder


def _allow_more_pixels(path: Path) -> None:
    settings = json.loads(path.read_text())
    settings["image_processor"]["size"] = PIXELS
    path.write_text(json.dumps(settings))


def picture(seed: int, width: int = 140, height: int = 112) -> Image.Image:
    """Coloured rectangles, different for each seed."""
    rng = random.Random(seed)
    image = Image.new("RGB", (width, height), tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.randrange(width), rng.randrange(height)
        colour = tuple(rng.randrange(256) for _ in range(3))
        draw.rectangle((x, y, x + rng.randrange(8, 60), y + rng.randrange(8, 60)), fill=colour)
    return image


class Reference:
    """transformers on one thread, in float32, greedy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        torch.set_num_threads(1)
        model = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval(), AutoProcessor.from_pretrained(self.folder)

    def answer(self, messages: list[dict[str, Any]], pictures: list[Image.Image], max_tokens: int) -> list[int]:
        """Greedy token ids, the end of sequence left out."""
        import torch

        model, processor = self._parts
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], images=pictures or None, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=False, temperature=None, top_p=None, top_k=None
            )
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return ids[:-1] if ids and ids[-1] in ends else ids

    def text(self, ids: list[int]) -> str:
        return str(self._parts[1].tokenizer.decode(ids, skip_special_tokens=True))
