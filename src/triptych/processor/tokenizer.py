"""The model's tokenizer, by the ``tokenizers`` library alone (transformers would bring torch along)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from triptych.contracts.errors import ConfigError
from triptych.models.registry import read_json

_TEXTS = 8192
"""Short texts whose tokens are remembered: more than there are times, by tenths of a second, in ten minutes."""


class Tokenizer:
    """Text to ids and ids to text for one model. Thread-safe: nothing changes after loading."""

    def __init__(self, fast: FastTokenizer, settings: dict[str, Any]) -> None:
        self.fast = fast
        self.settings = settings
        """``tokenizer_config.json``."""
        self.token_text = lru_cache(maxsize=65536)(self._token_text)
        self.plain: Callable[[str], tuple[int, ...]] = lru_cache(maxsize=_TEXTS)(self._plain)
        """``models.base.Tokenise``: what was asked before is known, as videos' times come again and again."""
        self.vocabulary_size = fast.get_vocab_size(with_added_tokens=True)

    @classmethod
    def load(cls, folder: str) -> Tokenizer:
        """Read ``tokenizer.json`` and ``tokenizer_config.json``. Raises ConfigError naming what is missing."""
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
        return cls(fast, read_json(Path(folder) / "tokenizer_config.json"))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.fast.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self.encode(text, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        text: str = self.fast.decode(ids, skip_special_tokens=True)
        return text

    def special_tokens(self) -> dict[str, str]:
        """``bos_token`` and its like as text, for chat templates."""
        named = {key: value for key, value in self.settings.items() if key.endswith("_token")}
        texts = {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
        return {key: text for key, text in texts.items() if isinstance(text, str)}

    def _token_text(self, token_id: int) -> str:
        """One token by itself, for logprobs; U+FFFD where it holds a part of a character."""
        text: str = self.fast.decode([token_id], skip_special_tokens=False)
        return text
