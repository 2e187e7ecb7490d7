"""Finds where an answer differs from the right one, and whether rounding may be the reason."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from triptych.verify.ask import Reply
from triptych.verify.reference import Expected, Token

NEAR_TIES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.4}
"""For each number format, the margin of two logits below which other kernels, or another order of sums, may choose the
other token. It follows from the precision (2**-24, 2**-11, 2**-8) at logits of some tens, with room for the errors
that layers add up."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The difference between an answer and the right one."""

    fields: dict[str, tuple[str | int | None, str | int | None]]
    """The values that differ: name -> (expected, actual)."""
    character: int | None = None
    """The number of characters with which both texts begin; None if the texts are equal."""
    index: int | None = None
    """The index of the reference's token there, from 0.

    If several tokens are parts of one character, it is the one with the smallest margin."""
    token: Token | None = None
    """The reference's token at ``index``; None if the reference had ended."""

    @property
    def near_ties(self) -> list[str]:
        """The number formats in which the token at ``index`` was nearly a tie."""
        return [name for name, bound in NEAR_TIES.items() if self.token is not None and self.token.margin < bound]


def compare(expected: Expected, reply: Reply) -> Difference | None:
    """Returns the difference; None if text, finish reason and number of tokens are equal."""
    names = ("text", "finish_reason", "completion_tokens")
    fields = {name: pair for name in names if (pair := _pair(name, expected, reply))}
    if not fields:
        return None
    if prompts := _pair("prompt_tokens", expected, reply):
        fields["prompt_tokens"] = prompts  # not a fault by itself, but a hint where to look for one
    if "text" not in fields:
        return Difference(fields=fields)
    character = _shared(expected.text, reply.text)
    places = _places(expected.tokens, character)
    index = min(places, key=lambda at: expected.tokens[at].margin, default=None)
    token = None if index is None else expected.tokens[index]
    return Difference(fields=fields, character=character, index=index, token=token)


def _places(tokens: Sequence[Token], character: int) -> range:
    """Returns the indices of the tokens at which a text that is right up to ``character`` may have gone wrong."""
    start, known = 0, 0
    for at, token in enumerate(tokens):
        if token.end > character:
            return range(start, at + 1)
        if token.end > known:
            start, known = at + 1, token.end
    return range(start, len(tokens))


def _pair(name: str, expected: Expected, reply: Reply) -> tuple[str | int | None, str | int | None] | None:
    pair = getattr(expected, name), getattr(reply, name)
    return None if pair[0] == pair[1] else pair


def _shared(text: str, other: str) -> int:
    """Returns the number of characters with which both texts begin."""
    return next((at for at, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
