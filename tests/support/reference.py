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
from triptych.verify import reference

SPREAD = 0.12
"""Standard deviation of the random weights: with the usual 0.02 greedy decoding repeats one token."""
LLAVA_SPREAD = 0.16
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "llava")
"""What ``make_checkpoint`` makes: values of ``model_type``."""
LLAVA_SIDE = 84
"""Pixels a side of the pictures that the tiny LLaVA sees: 6 x 6 patches of 14."""


def make_checkpoint(folder: Path, family: str = "qwen2_vl", **settings: Any) -> Path:
    """Save a ``family`` model of random weights that transformers and vLLM load alike, and return ``folder``.

    Tokenizer and chat template are the demo model's (LLaVA: with ``<image>`` as its placeholder). ``settings``
    replace values of LLaVA's config.
    """
    import torch

    shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    torch.manual_seed(7)
    model = _llava(folder, **settings) if family == "llava" else _qwen(folder, family)
    _spread(model, LLAVA_SPREAD if family == "llava" else SPREAD)
    model.save_pretrained(folder)
    if family == "llava":
        _rename_tower(folder / "model.safetensors")
    return folder


def _spread(model: Any, spread: float) -> None:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, spread)


def _qwen(folder: Path, family: str) -> Any:
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

    config = AutoConfig.from_pretrained(MODEL_DIR)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    config.text_config.num_hidden_layers, config.text_config.layer_types = 2, ["full_attention"] * 2
    config.vision_config.depth = 2
    _allow_more_pixels(folder)
    if family == "qwen2_vl":
        return Qwen2VLForConditionalGeneration(config)
    return Qwen2_5_VLForConditionalGeneration(_qwen2_5_config(config))


def _qwen2_5_config(older: Any) -> Any:
    """The same sizes, with one layer of windows (2 x 2 tokens) and one that sees all."""
    from transformers import Qwen2_5_VLConfig

    text = {**older.text_config.to_dict(), "model_type": "qwen2_5_vl_text"}
    vision = {
        "depth": 2,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 3,
        "out_hidden_size": text["hidden_size"],
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "in_chans": 3,
    }
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        dtype="float32",
        **{name: getattr(older, name) for name in ids},
    )


def _allow_more_pixels(folder: Path) -> None:
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["size"] = PIXELS
    path.write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))


def _llava(folder: Path, **settings: Any) -> Any:
    """LLaVA-1.5: a CLIP tower of which the last layer is not used, and a Llama."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = _llava_processor(folder)
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=LLAVA_SIDE,
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
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    fixed = {"image_token_index": image_id, "image_seq_length": 36, "dtype": "float32"}
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **fixed, **settings))


def _llava_processor(folder: Path) -> Any:
    """Replace the processors by LLaVA's; returns the tokenizer, which has got ``<image>``."""
    from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    template = (folder / "chat_template.jinja").read_text()
    for path in [*folder.glob("*processor_config.json"), folder / "chat_template.jinja"]:
        path.unlink()
    pictures = CLIPImageProcessor(
        size={"shortest_edge": LLAVA_SIDE}, crop_size={"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    )
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\\n"),
    ).save_pretrained(folder)
    pictures.save_pretrained(folder)
    return tokenizer


def _rename_tower(path: Path) -> None:
    """To the names that checkpoints of LLaVA have on the hub, which vLLM knows; transformers 5 saves others."""
    from safetensors.torch import load_file, save_file

    old = "vision_tower."
    tensors = {
        f"{old}vision_model.{name.removeprefix(old)}" if name.startswith(old) else name: tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})


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


class Reference(reference.Reference):
    """That of ``triptych verify``, on one thread, in float32."""

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        import torch

        torch.set_num_threads(1)
        return super()._parts

    def answer(self, messages: list[dict[str, Any]], pictures: list[Image.Image], max_tokens: int) -> list[int]:
        """Greedy token ids, the end of sequence left out."""
        return list(self.expect(messages, pictures, max_tokens).ids)

    def text(self, ids: list[int]) -> str:
        return str(self._parts[1].tokenizer.decode(ids, skip_special_tokens=True))
