"""Tests the translation of an engine's block events: hashes, missing parents, tiers, and random input."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterable

import pytest

from triptych.contracts.kv_events import KvChange, Level, packed, unpacked
from triptych.kv.block_hash import block_hashes, root
from triptych.kv.prompt_keys import MediumAt, prompt_keys
from triptych.kv.translate import Stored, Translator

SIZE = 4


def apply(changes: Iterable[KvChange] | None, held: dict[int, set[int]]) -> None:
    assert changes is not None
    for change in changes:
        known = held.setdefault(change.level, set())
        for one in unpacked(change.hashes):
            assert (one in known) != change.stored, "reported twice"
            (known.add if change.stored else known.remove)(one)


def own(tokens: list[int], parent: int = 0) -> list[int]:
    return block_hashes(prompt_keys(tokens), SIZE, parent)


def test_blocks_get_our_hashes_whatever_the_engine_calls_them() -> None:
    translator, held = Translator(SIZE), dict[int, set[int]]()
    tokens = list(range(12))
    apply(translator.store(Stored([b"x", b"y"], None, tokens[:8])), held)
    apply(translator.store(Stored([b"z"], b"y", tokens[8:])), held)
    assert held == {Level.DEVICE: set(own(tokens))}
    apply(translator.store(Stored([b"q"], None, tokens[:4], adapter="fox")), held)
    assert own(tokens[:4], root("fox"))[0] in held[Level.DEVICE]


def test_blocks_with_media_are_named_by_content() -> None:
    translator = Translator(SIZE, placeholders={7})
    cat, dog = (
        translator.store(Stored([name], None, [1, 7, 7, 2], media=[[MediumAt(1, 0, name.hex())]])) or []
        for name in (b"cat", b"dog")
    )
    expected = [
        block_hashes(prompt_keys([1, 7, 7, 2], [MediumAt(1, 2, name.hex())]), SIZE) for name in (b"cat", b"dog")
    ]
    assert [list(unpacked(one[0].hashes)) for one in (cat, dog)] == expected


def test_blocks_with_unknown_parents_are_passed_over_and_counted() -> None:
    translator = Translator(SIZE)
    assert translator.store(Stored([5, 6], 4, list(range(8)))) == []
    assert translator.remove([9]) == []
    assert translator.unknown == 3


def test_a_block_is_reported_only_while_its_prefix_is_held() -> None:
    translator, held = Translator(SIZE), dict[int, set[int]]()
    tokens = list(range(16))
    names = own(tokens)
    apply(translator.store(Stored([1, 2, 3, 4], None, tokens)), held)
    apply(translator.remove([2]), held)
    assert held[0] == {names[0]}
    apply(translator.remove([4]), held)
    apply(translator.store(Stored([2], 1, tokens[4:8])), held)
    assert held[0] == set(names[:3])
    apply(translator.remove([3, 2, 1]), held)
    assert held[0] == set()
    assert len(translator) == 0


def test_a_tier_counts_at_its_own_level_and_those_below() -> None:
    translator, held = Translator(SIZE), dict[int, set[int]]()
    tokens = list(range(12))
    names = own(tokens)
    apply(translator.store(Stored([1, 2, 3], None, tokens)), held)
    assert held == {0: set(names)}, "there is one tier"
    for hashes, tier in (([1, 2], Level.HOST), ([1], Level.DISK)):
        assert translator.store(Stored(hashes, None, [], tier=tier)) is None, "now there is one more"
    held = {}
    apply(translator.snapshot(), held)
    assert held == {level: set(names) for level in Level}
    assert translator.store(Stored([1], None, [], tier=Level.HOST)) == []
    apply(translator.remove([3, 2, 1]), held)
    assert held == {0: set(), 1: set(names[:2]), 2: set(names[:2])}
    apply(translator.remove([1], Level.HOST), held)
    assert held == {0: set(), 1: set(), 2: set(names[:2])}
    apply(translator.remove([2], Level.HOST), held)
    assert held[2] == {names[0]}
    again = dict[int, set[int]]()
    apply(translator.snapshot(), again)
    assert again == {2: {names[0]}}
    assert translator.remove([1, 2], None) == [KvChange(Level.DISK, False, packed(names[:1]))]
    assert len(translator) == 0
    translator.clear()
    assert translator.snapshot() == []


@pytest.mark.parametrize("tiers", [[Level.DEVICE], list(Level)])
def test_equals_a_slow_model_on_random_input(tiers: list[Level]) -> None:
    rng = random.Random(11)
    translator, held = Translator(SIZE), dict[int, set[int]]()
    prompts = [[rng.randrange(3) for _ in range(SIZE * rng.randrange(1, 8))] for _ in range(30)]
    ours = [own(prompt) for prompt in prompts]
    before = {one: names[at - 1] if at else None for names in ours for at, one in enumerate(names)}
    in_engine: dict[int, set[int]] = {tier: set() for tier in tiers}
    for tier in tiers:
        translator.store(Stored([b"x"], None, [5] * SIZE, tier=tier))
    translator.remove([b"x"], None)
    for _ in range(1500):
        number, tier = rng.randrange(len(prompts)), rng.choice(tiers)
        prompt, names = prompts[number], ours[number]
        if rng.random() < 0.5:
            known = set().union(*in_engine.values())
            first = rng.randrange(1 + next((at for at, one in enumerate(names) if one not in known), len(names) - 1))
            parent = called(names[first - 1]) if first else None
            stored = Stored([called(one) for one in names[first:]], parent, prompt[first * SIZE :], tier=tier)
            changes = translator.store(stored)
            in_engine[tier] |= set(names[first:])
        else:
            gone = [one for one in rng.sample(names, rng.randrange(1 + len(names))) if one in in_engine[tier]]
            changes = translator.remove([called(one) for one in gone], tier)
            in_engine[tier] -= set(gone)
        apply_in_order(changes, held, before)
        for level in tiers:
            counted = set().union(*(in_engine[one] for one in tiers if one <= level))
            assert held.get(level, set()) == {one for names in ours for one in usable_of(names, counted)}
    assert translator.unknown == 0


def called(one: int) -> bytes:
    """Returns the engine's hash of a block."""
    return str(one).encode()


def apply_in_order(
    changes: Iterable[KvChange] | None, held: dict[int, set[int]], before: dict[int, int | None]
) -> None:
    """Applies changes and checks their order: parents are stored first, and children removed first."""
    assert changes is not None
    for change in changes:
        for one in unpacked(change.hashes):
            apply([KvChange(change.level, change.stored, packed([one]))], held)
            assert before[one] is None or before[one] in held[change.level]


def usable_of(names: list[int], in_engine: set[int]) -> list[int]:
    first = next((at for at, one in enumerate(names) if one not in in_engine), len(names))
    return names[:first]


def test_an_event_may_repeat_blocks_that_are_known() -> None:
    translator, held = Translator(SIZE), dict[int, set[int]]()
    tokens = list(range(16))
    apply(translator.store(Stored([1, 2], None, tokens[:8])), held)
    apply(translator.store(Stored([1, 2, 3, 4], None, tokens)), held)
    assert held[0] == set(own(tokens))
    apply(translator.remove([4, 3, 2, 1]), held)
    assert len(translator) == 0


def test_unknown_blocks_before_a_known_one_are_passed_over() -> None:
    """No engine whose hashes stand for prefixes sends such an event."""
    translator, held = Translator(SIZE), dict[int, set[int]]()
    tokens = list(range(16))
    apply(translator.store(Stored([2], None, tokens[4:8])), held)
    apply(translator.store(Stored([1, 2, 3], None, tokens[:12])), held)
    assert held[0] == set(own(tokens[4:12]))
    assert translator.unknown == 1
    apply(translator.remove([3, 2]), held)
    assert len(translator) == 0


def test_hashes_without_tokens_and_tokens_without_hashes_are_ignored() -> None:
    translator, held = Translator(SIZE), dict[int, set[int]]()
    tokens = list(range(12))
    apply(translator.store(Stored([1], None, tokens[:8])), held)
    assert held[0] == set(own(tokens[:4]))
    apply(translator.store(Stored([1, 2, 3], None, tokens[:10])), held)
    assert held[0] == set(own(tokens[:8]))


def test_the_garbage_collector_does_not_track_blocks() -> None:
    translator = Translator(SIZE)
    known = len(gc.get_objects())
    translator.store(Stored(range(1000), None, range(1000 * SIZE)))
    assert len(gc.get_objects()) - known < 100
