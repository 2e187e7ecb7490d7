"""Tests which prompts share the hashes of their KV blocks."""

from __future__ import annotations

import random
from array import array

import pytest

from support.cpu import least_cpu_s
from triptych.kv.block_hash import block_hashes, root
from triptych.kv.prompt_keys import MediumAt, block_keys, content_token, prompt_keys

PAD = 7
CAT, DOG = "ca" * 32, "d0" * 32


def hashes(tokens: list[int], *media: MediumAt, parent: int = 0) -> list[int]:
    return block_hashes(prompt_keys(tokens, media), 4, parent)


def test_only_full_blocks_have_hashes_that_stand_for_their_prefix() -> None:
    one = hashes([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert len(one) == 2
    assert hashes([1, 2, 3, 4, 5, 6, 7, 8]) == one
    assert hashes([1, 2, 3, 4])[0] == one[0]
    other = hashes([1, 2, 3, 5, 5, 6, 7, 8])
    assert one[0] != other[0]
    assert one[1] != other[1]
    assert hashes([5, 6, 7, 8], parent=one[0]) == one[1:]


def test_other_adapters_and_salts_share_no_blocks() -> None:
    roots = [root(), root("a"), root("b"), root("", "a"), root("a", "a")]
    assert len({hashes([1, 2, 3, 4], parent=one)[0] for one in roots}) == len(roots)


def test_prompts_with_different_media_differ_from_where_the_medium_begins() -> None:
    tokens = [1, 2, 3, 4, 5, *[PAD] * 6, 6]
    cat, dog = (hashes(tokens, MediumAt(5, 6, name)) for name in (CAT, DOG))
    assert cat[0] == dog[0]
    assert not set(cat[1:]) & set(dog[1:])
    assert hashes(tokens, MediumAt(5, 6, CAT)) == cat


def test_two_parts_of_one_medium_have_different_keys() -> None:
    first, second = (
        prompt_keys([PAD] * 8, [MediumAt(0, 16, CAT)])[:4],
        prompt_keys([PAD] * 8, [MediumAt(0, 16, CAT)])[4:],
    )
    assert first != second


def test_reported_blocks_get_the_hashes_of_the_prompt() -> None:
    """The media begin and end within blocks, and texts may stand within them."""
    tokens = [1, *[PAD] * 5, 2, PAD, 3, PAD, PAD, PAD]
    prompt = prompt_keys(tokens, [MediumAt(1, 5, CAT)])
    prompt[7] = content_token(DOG)
    for place in (9, 10, 11):
        prompt[place] = (content_token(DOG) + place - 7) % 2**32
    reported = block_keys(
        tokens,
        [
            [MediumAt(1, 0, CAT)],
            [MediumAt(1 - 4, 0, CAT), MediumAt(7 - 4, 0, DOG)],
            [MediumAt(7 - 8, 0, DOG)],
        ],
        4,
        {PAD},
    )
    assert reported == prompt


def one_by_one(tokens: list[int], media: list[MediumAt], placeholders: set[int]) -> list[int]:
    """Does what ``prompt_keys`` does, token by token."""
    out = list(tokens)
    for offset, count, content_hash in media:
        for place in range(min(count, len(tokens) - offset)):
            if not placeholders or tokens[offset + place] in placeholders:
                out[offset + place] = (content_token(content_hash) + place) % 2**32
    return out


@pytest.mark.parametrize("name", [5, 2**32 - 3, 2**32 - 1])
def test_keys_of_a_medium_count_up_across_texts(name: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.kv.prompt_keys.content_token", lambda content: name)
    monkeypatch.setitem(globals(), "content_token", lambda content: name)
    monkeypatch.setattr("triptych.kv.prompt_keys._TOKENS_A_STEP", 4)
    rng = random.Random(name)
    for placeholders in (set(), {PAD}, {PAD, 8}, {99}):
        for _ in range(50):
            tokens = [rng.choice([1, PAD, PAD, 8]) for _ in range(24)]
            media = [MediumAt(2, 9, CAT), MediumAt(11, 0, DOG), MediumAt(13, 20, DOG)]
            assert prompt_keys(tokens, media, placeholders).tolist() == one_by_one(tokens, media, placeholders)


def test_keys_of_long_media_are_not_made_token_by_token() -> None:
    """A frontend's event loop makes a quarter of a million keys at once."""
    tokens, media = [PAD] * 50_000, [MediumAt(0, 50_000, CAT)]
    assert (
        least_cpu_s(lambda: prompt_keys(tokens, media, {PAD}))
        < least_cpu_s(lambda: one_by_one(tokens, media, {PAD})) / 2
    )


def test_ids_over_32_bits_are_refused() -> None:
    with pytest.raises(OverflowError):
        prompt_keys([-1])


def test_without_adapter_and_salt_a_chain_begins_at_zero() -> None:
    assert root("", "") == 0
    tokens = array("I", range(32))
    assert block_hashes(tokens, 16) == block_hashes(tokens, 16, 0) != block_hashes(tokens, 16, 1)
