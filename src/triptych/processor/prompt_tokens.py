"""Turns text or token ids into a prompt's tokens, within the model's context and vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from triptych.contracts.card import ModelCard
from triptych.contracts.errors import BadRequest
from triptych.contracts.media import MediaKind
from triptych.contracts.tokens import TokenIds
from triptych.processor.continued import FIELD as CONTINUED
from triptych.processor.tokenizer import Tokenizer

_AT_ONCE = 16_384


@dataclass(frozen=True)
class PromptTokens:
    """Makes the tokens of one model's prompts. Does no I/O and never waits.

    ``param`` names the request's field that a prompt comes from, for errors. All methods raise BadRequest.
    """

    card: ModelCard
    tokenizer: Tokenizer
    placeholder_ids: Mapping[MediaKind, int]
    """Id of the token that stands for a medium, by its kind."""

    def check_characters(self, characters: int, param: str) -> None:
        """Refuses a text of so many characters if it exceeds the context even with the longest tokens."""
        fewest_tokens = -(-characters // self.tokenizer.bounds.characters)
        self._refuse_over(fewest_tokens, f"{characters:,} characters", param)

    def check_count(self, tokens: int, param: str) -> None:
        """Refuses a prompt without token ids, and one with more than the context has room for."""
        if not tokens:
            raise _holds_none(param)
        self._refuse_over(tokens, f"{tokens:,} token ids", param)

    def of_chat(self, text: str, media: Sequence[MediaKind], param: str, *, is_cut: bool) -> TokenIds:
        """Tokenises a rendered chat with ``media``.

        With ``is_cut`` the text may end before the last message's media.
        """
        ids = self._of_text(text, param, add_special_tokens=False)
        self._check_placeholders(ids, media, param, is_cut=is_cut)
        return ids

    def of_text(self, text: str, param: str, *, add_special_tokens: bool) -> TokenIds:
        """Tokenises a plain text."""
        ids = self._of_text(text, param, add_special_tokens=add_special_tokens)
        if not ids:
            raise _holds_none(param)
        self._check_placeholders(ids, (), param)
        return ids

    def of_ids(self, ids: Sequence[int], param: str) -> TokenIds:
        """Checks token ids, which must be in the vocabulary, and returns them."""
        limit = self.tokenizer.vocabulary_size
        if not all(0 <= min(piece) <= max(piece) < limit for piece in _pieces(ids)):
            at = next(at for at, token in enumerate(ids) if not 0 <= token < limit)
            raise BadRequest(f"{param}[{at}]: token ids must be between 0 and {limit - 1}", param=param)
        tokens = TokenIds(ids)
        self._check_placeholders(tokens, (), param)
        return tokens

    def _of_text(self, text: str, param: str, *, add_special_tokens: bool) -> TokenIds:
        fewest_tokens = self.tokenizer.bounds.fewest_tokens(text, self.card.context_length)
        self._refuse_over(fewest_tokens, f"{len(text):,} characters", param)
        return self.tokenizer.prompt(text, add_special_tokens=add_special_tokens)

    def _refuse_over(self, fewest_tokens: int, given: str, param: str) -> None:
        if fewest_tokens > self.card.context_length:
            raise BadRequest(
                f"{param}: {given} are at least {fewest_tokens:,} tokens; the model's context "
                f"length is {self.card.context_length:,} tokens",
                param=param,
                code="context_length_exceeded",
            )

    def _check_placeholders(
        self, ids: TokenIds, media: Sequence[MediaKind], param: str, *, is_cut: bool = False
    ) -> None:
        """Checks that every medium has exactly one placeholder, and that no text contains another."""
        counts = ids.count_each(self.placeholder_ids.values())
        for kind, token in self.placeholder_ids.items():
            wanted, found = media.count(kind), counts[token]
            if found > wanted:
                text = self.tokenizer.fast.id_to_token(token)
                raise BadRequest(
                    f"{param}: it holds {text!r}, which stands for a medium in this model's prompts: leave it out",
                    param=param,
                    code="placeholder_in_text",
                )
            if found < wanted and is_cut:
                raise BadRequest(
                    f"{CONTINUED}: media stand behind the last message's last text, where the prompt ends: put them "
                    "before that text",
                    param=CONTINUED,
                )
            if found < wanted:
                raise BadRequest(
                    f"the model's chat template left out {wanted - found} of {wanted} media of kind {kind}",
                    param=param,
                )


def _holds_none(param: str) -> BadRequest:
    return BadRequest(f"{param}: it holds no token", param=param)


def _pieces(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cuts ``ids`` into pieces that take a millisecond each: work on a piece holds the interpreter lock."""
    return (ids[at : at + _AT_ONCE] for at in range(0, len(ids), _AT_ONCE))
