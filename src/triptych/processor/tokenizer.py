"""Loads the model's tokenizer, with the ``tokenizers`` library because transformers would import torch.

For prompts it uses a faster library if that gives the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from triptych.contracts.errors import ConfigError
from triptych.contracts.tokens import TokenIds
from triptych.models.registry import read_json
from triptych.processor.fast_tokens import FastTokens, load_fast
from triptych.processor.token_bounds import TokenBounds, token_bounds
from triptych.processor.token_bytes import TokenBytes

_TEXTS = 8192
"""Number of short texts whose tokens are cached: more than a video of ten minutes has times in tenths of a second."""


class Tokenizer:
    """Turns text into ids and ids into text for one model. Thread-safe: only its cache changes after loading."""

    def __init__(
        self,
        fast: FastTokenizer,
        settings: dict[str, Any],
        faster: FastTokens | None = None,
        bounds: TokenBounds | None = None,
    ) -> None:
        self.fast = fast
        self._faster = faster
        self.bounds = bounds or TokenBounds()
        self.settings = settings
        """``tokenizer_config.json``."""
        self.spelling = TokenBytes(fast)
        self.plain: Callable[[str], tuple[int, ...]] = lru_cache(maxsize=_TEXTS)(self._plain)
        """A cached ``models.base.Tokenise``, because videos' times occur again and again."""
        self.vocabulary_size = fast.get_vocab_size(with_added_tokens=True)

    @classmethod
    def load(cls, folder: str, *, for_prompts: bool = False) -> Tokenizer:
        """Reads ``tokenizer.json`` and ``tokenizer_config.json``. Raises ConfigError naming what is missing.

        With ``for_prompts`` it is prepared to encode whole prompts.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(
                f"{folder} has no tokenizer.json; make one with transformers: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        try:
            fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library has only bare exceptions
            raise ConfigError(f"{path} cannot be read: {error}") from error
        fast.no_truncation()
        fast.no_padding()
        settings = read_json(Path(folder) / "tokenizer_config.json")
        if not for_prompts:
            return cls(fast, settings)
        return cls(fast, settings, load_fast(path, fast), token_bounds(path))

    @property
    def by(self) -> str:
        """The name of the library that encodes prompts."""
        return "tokenizers" if self._faster is None else "fastokens"

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.fast.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def prompt(self, text: str, *, add_special_tokens: bool) -> TokenIds:
        """Encodes texts of any length, as ``encode`` does, without holding the interpreter lock while it computes."""
        if self._faster is not None:
            return TokenIds(self._faster.encode_batch_flat([text], add_special_tokens)[0])
        return TokenIds(self.fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self.encode(text, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        text: str = self.fast.decode(ids, skip_special_tokens=True)
        return text

    def decode_long(self, ids: Sequence[int]) -> str:
        """Decodes as ``decode`` does, without holding the interpreter lock while it computes."""
        text: str = self.fast.decode_batch([list(ids)], skip_special_tokens=True)[0]
        return text

    def special_tokens(self) -> dict[str, str]:
        """Returns ``bos_token`` and other special tokens as text, for chat templates."""
        named = {key: value for key, value in self.settings.items() if key.endswith("_token")}
        texts = {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
        return {key: text for key, text in texts.items() if isinstance(text, str)}
