"""Returns the bytes that each token adds to a text, by the rule of the tokenizer's own decoder.

Byte-level vocabularies (GPT-2, Qwen, Llama 3) spell each byte as a letter. Those with byte fallback (SentencePiece,
Llama 2, Mistral) have a token for each byte beside whole words. In both, a token may be a part of a character, which
cannot be written as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from tokenizers import Tokenizer as FastTokenizer

_PRINTED = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTED}
"""Letter -> byte in byte-level vocabularies: the byte's own letter if that is printable, otherwise one from 256 up."""
_BYTE_OF_LETTER |= {chr(256 + place): byte for place, byte in enumerate(sorted({*range(256)} - {*_PRINTED}))}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_Rule = Callable[[str], bytes]
"""Returns a token's bytes within a text, from the token as the vocabulary has it."""


class Spelling(NamedTuple):
    """The text and the bytes of a token."""

    text: str
    """The token's text. For a part of a character, the bytes as OpenAI's API spells them: ``bytes:\\xe4\\xbd``."""
    data: bytes
    """The bytes that the token adds to a text; none for a special token."""


class TokenBytes:
    """Spells tokens. Each is looked up once and then remembered. Thread-safe."""

    def __init__(self, fast: FastTokenizer) -> None:
        self._fast = fast
        self._rule = _rule_of(_decoder_of(fast))
        self._special = {
            number: token.content for number, token in fast.get_added_tokens_decoder().items() if token.special
        }
        self._known: dict[int, Spelling] = {}
        """Spellings by token id, of ids in the vocabulary only, so that their number is bounded."""

    def __call__(self, token_id: int) -> Spelling:
        if (known := self._known.get(token_id)) is None:
            known = self._spelling(token_id)
            if self._fast.id_to_token(token_id) is not None:
                self._known[token_id] = known
        return known

    def fill(self) -> None:
        """Looks up all tokens beforehand, for callers that need most of them. Blocks: call it in a thread."""
        if len(self._known) < (size := self._fast.get_vocab_size()):
            for token_id in range(size):
                self(token_id)

    def _spelling(self, token_id: int) -> Spelling:
        if token_id in self._special:
            return Spelling(self._special[token_id], b"")
        token = self._fast.id_to_token(token_id)
        if token is None:
            return Spelling(by_id(token_id), b"")
        data = self._rule(token) if self._rule is not None else self._decoded(token_id)
        return Spelling(spelled(data), data)

    def _decoded(self, token_id: int) -> bytes:
        text: str = self._fast.decode([token_id], skip_special_tokens=False)
        return text.encode()


def spelled(data: bytes) -> str:
    """Returns the text of ``data``; its bytes, spelled out, if they are no whole characters."""
    return data.decode() if is_whole(data) else "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def is_whole(data: bytes) -> bool:
    """Tells whether ``data`` are whole characters in UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def by_id(token_id: int) -> str:
    """Spells a token by its id, if it has no text or the same text as another token. vLLM can do the same."""
    return f"token_id:{token_id}"


def _decoder_of(fast: FastTokenizer) -> list[dict[str, Any]]:
    """Returns the steps of the tokenizer's decoder, as ``tokenizer.json`` has them."""
    if fast.decoder is None:
        return []
    decoder = msgspec.json.decode(fast.decoder.__getstate__())
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _rule_of(steps: list[dict[str, Any]]) -> _Rule | None:
    """Returns the rule of a decoder. None for other kinds of decoders, whose tokens' texts do not depend on bytes."""
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level
    if not kinds or not set(kinds) <= {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}:
        return None
    replaced = [pair for step in steps if (pair := _replaced(step)) is not None]
    return lambda token: _with_fallback(token, replaced)


def _replaced(step: dict[str, Any]) -> tuple[str, str] | None:
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    return None


def _byte_level(token: str) -> bytes:
    """Returns a token's bytes.

    An added token that is not spelled in letters of bytes stands for its own text, as in the library.
    """
    try:
        return bytes([_BYTE_OF_LETTER[letter] for letter in token])
    except KeyError:
        return token.encode()


def _with_fallback(token: str, replaced: list[tuple[str, str]]) -> bytes:
    if (found := _BYTE_TOKEN.fullmatch(token)) is not None:
        return bytes.fromhex(found[1])
    for old, new in replaced:
        token = token.replace(old, new)
    return token.encode()
