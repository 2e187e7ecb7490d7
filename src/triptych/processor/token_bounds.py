"""Computes how many characters a token can stand for, by a tokenizer's file.

With this a text that cannot fit into the context is refused before it is tokenised.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

UNPROVEN_CHARACTERS = 256
"""Characters of one token if the tokenizer's file does not bound them: it may drop characters, or merge many."""
NFC_BYTES_A_CHARACTER = Fraction(2, 3)
"""Minimum number of UTF-8 bytes a character that Unicode's composition (NFC) leaves: U+01D6 has 2 bytes, and can be
written in 3 characters. No ratio is smaller."""
_AT_ONCE = 1 << 16
_NO_LETTERS = bytes(byte for byte in range(256) if not (byte < 128 and chr(byte).isalnum()))
_KEEPING_SPLITS = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


class _AddedToken(msgspec.Struct):
    content: str
    lstrip: bool = False
    rstrip: bool = False


class _Model(msgspec.Struct):
    type: str = ""
    vocab: Any = None
    byte_fallback: bool = False


class _File(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None


class TokenBounds(NamedTuple):
    """The maximum number of characters and bytes that one token stands for, on average over any text."""

    characters: int = UNPROVEN_CHARACTERS
    letters: int = 0
    """The maximum number of ASCII letters and digits among them, which is less than that of blanks; 0 if not known."""

    def fewest_tokens(self, text: str, limit: int) -> int:
        """Returns the minimum number of tokens of ``text``, computed closely only if that may exceed ``limit``."""
        fewest = -(-len(text) // self.characters)
        if fewest > limit or not self.letters or len(text) <= limit * self.letters:
            return fewest
        return max(fewest, -(-_letters(text) // self.letters))


def _letters(text: str) -> int:
    """Counts ASCII letters and digits in ``text``, without those that composition (NFC) could absorb.

    Works in steps of 0.1 ms.
    """
    letters = 0
    for at in range(0, len(text), _AT_ONCE):
        piece = text[at : at + _AT_ONCE]
        letters += _count(piece) - (len(piece) - len(piece.encode("ascii", "ignore")))
    return max(0, letters)


def _count(piece: str) -> int:
    return len(piece.encode("ascii", "ignore").translate(None, _NO_LETTERS))


def token_bounds(path: Path) -> TokenBounds:
    """Returns the bounds of the tokens of a ``tokenizer.json``."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except msgspec.MsgspecError:
        return TokenBounds()
    kept = _kept(file)
    if kept is None:
        return TokenBounds()
    added = [token.content for token in file.added_tokens]
    longest = max([1, *map(len, file.model.vocab), *(len(text.encode()) for text in added)])
    letters = max([1, *map(_count, file.model.vocab), *map(_count, added)])
    return TokenBounds(int(-(-longest // kept)), letters)


def _kept(file: _File) -> Fraction | None:
    """Returns the units of the vocabulary (bytes, or characters) that are left of each character.

    Returns None if some characters may be dropped.
    """
    if file.model.type != "BPE" or not isinstance(file.model.vocab, dict):
        return None
    if any(token.lstrip or token.rstrip for token in file.added_tokens):
        return None  # they take any number of blanks in
    normalizers, pre_tokenizers = _flat(file.normalizer, "normalizers"), _flat(file.pre_tokenizer, "pretokenizers")
    if not all(map(_keeps_text, pre_tokenizers)):
        return None
    if any(step.get("type") == "ByteLevel" for step in pre_tokenizers):
        if not _byte_characters() <= file.model.vocab.keys() or any(step.get("type") != "NFC" for step in normalizers):
            return None
        return NFC_BYTES_A_CHARACTER if normalizers else Fraction(1)
    by_bytes = file.model.byte_fallback and all(f"<0x{byte:02X}>" in file.model.vocab for byte in range(256))
    return Fraction(1) if by_bytes and all(map(_keeps_length, normalizers)) else None


def _flat(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return (
        [step for inner in part.get(name, []) for step in _flat(inner, name)]
        if part.get("type") == "Sequence"
        else [part]
    )


def _keeps_text(pre_tokenizer: dict[str, Any]) -> bool:
    kind = pre_tokenizer.get("type")
    return kind in ("ByteLevel", "Digits", "Metaspace") or (
        kind == "Split" and pre_tokenizer.get("behavior") in _KEEPING_SPLITS
    )


def _keeps_length(normalizer: dict[str, Any]) -> bool:
    """Tells whether a normalizer makes no text shorter."""
    if normalizer.get("type") == "Replace":
        pattern, content = normalizer.get("pattern", {}).get("String"), normalizer.get("content")
        return isinstance(pattern, str) and isinstance(content, str) and len(content) >= len(pattern)
    return normalizer.get("type") == "Prepend"


def _byte_characters() -> set[str]:
    """Returns the characters that stand for bytes in byte-level vocabularies (GPT-2's ``bytes_to_unicode``)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return {chr(byte) for byte in plain} | {chr(0x100 + n) for n in range(256 - len(plain))}
