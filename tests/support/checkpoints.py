"""Folders of checkpoints without weights, small tokenizers and pictures, made in code."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from triptych.contracts.card import ModelCard
from triptych.demo import MODEL_DIR
from triptych.models.qwen_vl import image_tokens
from triptych.models.registry import load_checkpoint


def _demo(name: str) -> dict[str, Any]:
    return json.loads((MODEL_DIR / name).read_text())


IMAGE_ID: int = _demo("config.json")["image_token_id"]
"""The demo model's placeholder of a picture ..."""
IMAGE_TEXT = "<|image_pad|>"
"""... and its text."""
VOCABULARY = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json")).get_vocab_size()
CONTEXT: int = load_checkpoint(str(MODEL_DIR)).context_length


def cells(width: int, height: int) -> int:
    """Tokens that the demo model sees of a picture."""
    return image_tokens(load_checkpoint(str(MODEL_DIR)), width, height)


def picture_url(width: int = 32, height: int = 32, colour: str = "red", format: str = "PNG") -> str:
    return f"data:image/{format.lower()};base64,{base64.b64encode(picture(width, height, colour, format)).decode()}"


def picture(width: int = 32, height: int = 32, colour: str = "red", format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, format)
    return out.getvalue()


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def card_of(folder: Path, context_length: int = 4096, modalities: tuple[str, ...] = ("image",)) -> ModelCard:
    return ModelCard(name="demo", path=str(folder), context_length=context_length, modalities=modalities)


def copy_demo(folder: Path, *, chat_template: str | None = None, **config: Any) -> Path:
    """The demo checkpoint without its weights, with another template or config values."""
    for name in MODEL_DIR.iterdir():
        if name.suffix in (".json", ".jinja"):
            shutil.copy(name, folder / name.name)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def text_checkpoint(folder: Path, tokenizer: Tokenizer, *, chat_template: str | None = None, **settings: Any) -> Path:
    """A text-only model's folder; ``settings`` go to ``tokenizer_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 256}))
    tokenizer.save(str(folder / "tokenizer.json"))
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def byte_level(*texts: str) -> Tokenizer:
    """A byte-level BPE tokenizer with a few merges of its own, some of which end inside of a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for text in texts:
        letters = _byte_letters(text)
        for first, second in zip(letters[::2], letters[1::2], strict=False):
            if first + second not in vocabulary:
                vocabulary[first + second] = len(vocabulary)
                merges.append((first, second))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def _byte_letters(text: str) -> str:
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)


def sentencepiece_like(*words: str) -> Tokenizer:
    """As Llama's: a space is ``▁``, one stands before every text, unknown characters fall back to bytes."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for number in range(256):
        vocabulary[f"<0x{number:02X}>"] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for letter in "▁" + "".join(sorted(set("".join(words)) - {"▁"})):
        vocabulary[letter] = len(vocabulary)
    for word in words:
        so_far = word[0]
        for letter in word[1:]:
            if so_far + letter not in vocabulary:
                vocabulary[so_far + letter] = len(vocabulary)
                merges.append((so_far, letter))
            so_far += letter
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer
