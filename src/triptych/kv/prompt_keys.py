"""Makes prompt keys: a prompt's token ids, in which tokens made of a medium's content hash stand for its placeholders.

KV blocks are named by prompt keys (``kv.block_hash``). So a block's hash tells which part of which content is in the
block, and the same content under another URL has the same blocks.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from triptych.contracts.media import MediaKind, Medium
from triptych.models.base import Expansion

_MODULUS = 1 << 32
_MASK = _MODULUS - 1
_TOKENS_A_STEP = 1 << 16
"""Number of tokens written in one step, which holds the interpreter lock for a millisecond."""


class MediumAt(NamedTuple):
    """The place of one medium in an expanded prompt."""

    offset: int
    """Index of the medium's first token."""
    tokens: int
    content_hash: str
    """The content hash in hex."""


def expanded_prompt_keys(
    ids: Sequence[int],
    media: Sequence[Medium],
    expansions: Sequence[Expansion],
    placeholder_ids: Mapping[MediaKind, int],
) -> array[int]:
    """Expands a prompt and returns its prompt keys as uint32 [tokens].

    ``ids`` has one placeholder for each of ``media``, and ``expansions`` says what each placeholder becomes.
    """
    tokens = array("I")
    places: list[MediumAt] = []
    begin = 0
    for medium, expansion in zip(media, expansions, strict=True):
        at = ids.index(placeholder_ids[medium.kind], begin)
        tokens += array("I", ids[begin:at])
        places.append(MediumAt(len(tokens), len(expansion.token_ids), medium.content_hash))
        tokens += array("I", expansion.token_ids)
        begin = at + 1
    tokens += array("I", ids[begin:])
    return prompt_keys(tokens, places, {expansion.embedded for expansion in expansions})


def prompt_keys(
    token_ids: Iterable[int], media: Iterable[MediumAt] = (), placeholders: Collection[int] = ()
) -> array[int]:
    """Returns the prompt keys of an expanded prompt as uint32 [tokens].

    Within a medium only ``placeholders`` are replaced, and the text between them stays; where none are given, every
    token of the medium is replaced. Raises OverflowError for ids that are no uint32.
    """
    tokens = array("I", token_ids)
    for offset, count, content_hash in media:
        key, end = content_token(content_hash), min(offset + count, len(tokens))
        for first, length in _runs(tokens[offset:end], placeholders):
            _count_up(tokens, offset + first, length, (key + first) & _MASK)
    return tokens


def _runs(tokens: array[int], placeholders: Collection[int]) -> Iterator[tuple[int, int]]:
    """Yields (index of the first, length) of each run of ``placeholders``; one run of all tokens if none are given."""
    if not placeholders or any(tokens == array("I", [token]) * len(tokens) for token in placeholders):
        yield 0, len(tokens)
        return
    inside = bytes(map(placeholders.__contains__, tokens)) + b"\0"
    first = inside.find(1)
    while first >= 0:
        end = inside.find(0, first)
        yield first, end - first
        first = inside.find(1, end)


def _count_up(tokens: array[int], first: int, length: int, key: int) -> None:
    """Overwrites ``length`` of ``tokens`` from ``first`` on with ``key``, ``key`` + 1 and so on, modulo 2**32."""
    while length:
        step = min(length, _TOKENS_A_STEP, _MODULUS - key)
        tokens[first : first + step] = array("I", range(key, key + step))
        first, length, key = first + step, length - step, (key + step) & _MASK


def block_keys(
    token_ids: Sequence[int], media: Sequence[Sequence[MediumAt]], block_size: int, placeholders: Collection[int]
) -> array[int]:
    """Returns the prompt keys of consecutive blocks that an engine reports, as uint32 [tokens].

    ``media`` has a list for each block, with offsets from the block's own first token. A medium whose end is not known
    goes on as long as there are ``placeholders`` and no other medium begins.
    """
    tokens = array("I", token_ids)
    for block, inside in enumerate(media):
        first = block * block_size
        for index, (offset, _, content_hash) in enumerate(inside):
            end = inside[index + 1].offset if index + 1 < len(inside) else block_size
            key = content_token(content_hash)
            for place in range(max(offset, 0), min(end, len(tokens) - first)):
                if tokens[first + place] in placeholders:
                    tokens[first + place] = (key + place - offset) & _MASK
    return tokens


def content_token(content_hash: str) -> int:
    """Returns the key of a medium's first token; the keys of the tokens after it count up, modulo 2**32."""
    return xxh3_64_intdigest(content_hash.encode()) & _MASK
