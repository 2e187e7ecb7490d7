"""Makes the model for frontends on mock engines: a configuration and a tokenizer, without weights.

The mock engines make up their tokens, so only the tokenizer matters. Dynamo's mocker draws token ids
up to 16,000; a smaller tokenizer leaves most of its deltas without text. This tokenizer is made when it is needed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks.model import copy_configuration

VOCABULARY = 20_000
_ONSETS = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "st", "tr", "pl", "gr"]
_VOWELS = ["a", "e", "i", "o", "u"]


def make_model(template: Path, folder: Path) -> Path:
    """Returns a copy of ``template`` without weights, and with a byte-level BPE tokenizer of 20,000 tokens."""
    copy_configuration(template, folder)
    tokenizer = _tokenizer(special_tokens(template))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = renumbered(json.loads((template / "config.json").read_text()), template, tokenizer)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def special_tokens(template: Path) -> dict[str, int]:
    added = json.loads((template / "tokenizer.json").read_text())["added_tokens"]
    return {token["content"]: token["id"] for token in added if token["special"]}


def _tokenizer(special: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words(), trainer)
    return tokenizer


def words() -> list[str]:
    """Returns made-up words, each with a space before it."""
    rng = random.Random(20_000)
    syllables = [onset + vowel for onset in _ONSETS for vowel in _VOWELS]
    return [" " + "".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(40_000)]


def renumbered(config: dict[str, Any], template: Path, tokenizer: Any) -> dict[str, Any]:
    """Returns ``config`` with the ids of special tokens and the vocabulary's size replaced, at every depth."""
    new_id = {old: tokenizer.token_to_id(text) for text, old in special_tokens(template).items()}

    def walk(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: walk(inner, name) for name, inner in value.items()}
        if key == "vocab_size":
            return tokenizer.get_vocab_size()
        return new_id.get(value, value) if key.endswith("_token_id") else value

    return dict(walk(config))
