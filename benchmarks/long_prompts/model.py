"""Makes the checkpoint and the prompts, both from Python sources in this environment. No two prompts are alike."""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.frontend_only import renumbered, special_tokens
from benchmarks.model import copy_configuration

VOCABULARY = 40_000
CONTEXT = 131_072
PROMPT_CHARACTERS = 240_000
_TRAINING_CHARACTERS = 6_000_000
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern by which Qwen's models cut texts before BPE."""


def make_model(template: Path, folder: Path) -> Path:
    """Returns a copy of ``template`` without weights: a context of 131,072 and a byte-level BPE of 40,000 tokens."""
    copy_configuration(template, folder)
    tokenizer = _trained(special_tokens(template))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = renumbered(json.loads((template / "config.json").read_text()), template, tokenizer)
    config["text_config"]["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def _trained(special: dict[str, int]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sources(random.Random(1), _TRAINING_CHARACTERS), trainer)
    return tokenizer


@lru_cache(maxsize=1)
def _files() -> tuple[Path, ...]:
    return tuple(sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")))


def _sources(rng: random.Random, characters: int) -> Iterator[str]:
    """Yields files of the environment, drawn by ``rng``, until there are so many characters."""
    while characters > 0:
        try:
            text = rng.choice(_files()).read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if "<|" in text:  # it may name a placeholder of media
            continue
        yield text
        characters -= len(text)


def source_prompt(rng: random.Random) -> str:
    """Returns 240,000 characters of Python sources, cut from whole files."""
    return "".join(_sources(rng, PROMPT_CHARACTERS))[:PROMPT_CHARACTERS]
