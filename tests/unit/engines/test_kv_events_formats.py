"""What engines' KV-cache events hold beside the common story, and what a real SGLang has said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.kv_tellers import PAD, SIZE, Asked, Index, Sglang, Trtllm, Vllm
from triptych.contracts.kv_events import KvChange, Level, packed
from triptych.engines.sglang import kv_events as sglang
from triptych.kv.block_hash import block_hashes, root
from triptych.kv.media_offsets import MediaOffsets
from triptych.kv.prompt_keys import MediumAt, prompt_keys

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "data" / "sglang_kv_events.json").read_text(encoding="utf-8")
)
PICTURE = Asked([5, *[PAD] * 6, 6], [MediumAt(1, 6, "ab" * 32)])


def test_what_is_foreseen_of_a_real_sglang_is_what_it_finds() -> None:
    """Recorded bytes: before each request the index tells what SGLang then says that it found, in each tier."""
    size, placeholder = RECORDED["page_size"], RECORDED["placeholder"]
    events, index = sglang.Events(size), Index()
    found = {"device": 0, "host": 0}
    for step in RECORDED["said"][1:-1]:
        media = [MediumAt(*one) for one in step["media"]]
        names = block_hashes(prompt_keys(step["token_ids"], media, {placeholder}), size, root(step["adapter"]))
        for one in media:
            events.tell(one.content_hash, one.tokens)
        usable = (len(step["token_ids"]) - 1) // size
        here = [leading(names[:usable], index.held.get(level, set())) for level in (Level.DEVICE, Level.HOST)]
        of_which = step["of_which"] or {"device": 0, "host": 0}
        assert here[0] * size == of_which["device"], step["asked"]
        assert max(here) * size == step["cached_tokens"] == sum(of_which.values()), step["asked"]
        hear(events, index, step["messages"])
        assert leading(names, index.held[Level.DEVICE]) == len(names), step["asked"]
        found = {tier: count + of_which[tier] for tier, count in found.items()}
    assert all(found.values()), "something is found in each tier"
    hear(events, index, RECORDED["said"][-1]["messages"])
    assert not any(index.held.values())
    assert events.translator.unknown == 0


def hear(events: sglang.Events, index: Index, messages: list[str]) -> None:
    for message in messages:
        for changes in events.apply(bytes.fromhex(message)):
            if changes is None:
                index.held = {}
            index.hear(events.translator.snapshot() if changes is None else changes)


def leading(names: list[int], held: set[int]) -> int:
    return next((at for at, one in enumerate(names) if one not in held), len(names))


def test_sglang_media_that_nobody_told_of_are_passed_over_with_what_hangs_on_them() -> None:
    told = Sglang()
    told.stored(PICTURE, range(2))
    assert told.index.held == {}
    assert told.events.translator.unknown == 2


def test_sglang_media_that_were_forgotten_keep_the_blocks_that_are_known() -> None:
    told = Sglang()
    told.events = sglang.Events(SIZE, max_media=1)
    told.asked(PICTURE)
    told.stored(PICTURE, range(2))
    told.events.tell("cd" * 32, 3)
    told.stored(PICTURE, range(2), Level.HOST)
    told.removed(PICTURE, [1, 0])
    assert told.index.held == {Level.DEVICE: set(), Level.HOST: set(PICTURE.own)}


def test_sglang_pages_of_pairs_are_those_of_their_first_tokens() -> None:
    told, prompt = Sglang(), Asked([1, 2, 3, 4])
    pairs = [[one, one + 1] for one in prompt.token_ids]
    event = {"type": "BlockStored", "block_hashes": [9], "parent_block_hash": None, "token_ids": pairs, "block_size": 4}
    told.hear(msgspec.msgpack.encode([0.5, [event]]))
    assert told.index.held == {Level.DEVICE: set(prompt.own)}


@pytest.mark.parametrize("medium", ["GPU", "ELSEWHERE"])
def test_blocks_of_another_size_and_tiers_of_another_kind_are_not_ours(medium: str) -> None:
    size = 2 if medium == "GPU" else 4
    event = {"type": "BlockStored", "block_hashes": [9], "token_ids": [1] * size, "block_size": size, "medium": medium}
    for told in (Sglang(), Vllm()):
        told.hear(msgspec.msgpack.encode([0.5, [event]]))
        assert told.index.held == {}


def test_vllm_removals_in_a_row_are_told_together() -> None:
    told, tokens = Vllm(), list(range(4 * SIZE))
    own = block_hashes(prompt_keys(tokens), SIZE)

    def removed(name: int, **where: Any) -> dict[str, Any]:
        return {"type": "BlockRemoved", "block_hashes": [name], **where}

    stored = {"type": "BlockStored", "block_hashes": [1, 2, 3, 4], "token_ids": tokens, "block_size": SIZE}
    evicted = [removed(4), removed(3), removed(2, group_idx=1), removed(2, medium="CPU"), removed(2)]
    events = [stored, *evicted, {**stored, "block_hashes": [2], "parent_block_hash": 1, "token_ids": tokens[SIZE:8]}]
    assert list(told.events.apply(msgspec.msgpack.encode([0.5, events]))) == [
        [KvChange(Level.DEVICE, True, packed(own))],
        [KvChange(Level.DEVICE, False, packed([own[3], own[2]]))],
        [],
        [KvChange(Level.DEVICE, False, packed([own[1]]))],
        [KvChange(Level.DEVICE, True, packed([own[1]]))],
    ]


def test_trtllm_blocks_without_a_name_of_ours_end_what_is_known() -> None:
    for change in (
        {"lora_id": 8},
        {"tokens": [{"token_id": 1, "token_extra_id": 0}] * 3},
        {"tokens": [{"token_id": 1, "token_extra_id": 5}] * 4},
        {"mm_keys": []},
    ):
        told = Trtllm()
        told.asked(PICTURE)
        first, second = (told.block(PICTURE, block, Level.DEVICE) for block in range(2))
        told.say({"type": "stored", "parent_hash": None, "blocks": [first, {**second, **change}]})
        assert told.index.held == {Level.DEVICE: set(PICTURE.own[:1])}, change


def test_trtllm_caches_of_narrower_windows_and_other_updates_do_not_count() -> None:
    told = Trtllm()
    told.say({"type": "created", "num_blocks_per_cache_level": [9]}, window=512)
    prompt = Asked([1, 2, 3, 4])
    stored = {"type": "stored", "parent_hash": None, "blocks": [told.block(prompt, 0, Level.DEVICE)]}
    told.say(stored, window=512)
    assert told.index.held == {}
    told.say(stored)
    told.say({"type": "removed", "block_hashes": [stored["blocks"][0]["block_hash"]]}, window=512)
    told.say({"type": "updated", "block_hash": stored["blocks"][0]["block_hash"], "priority": {"new_value": 1}})
    assert told.index.held == {Level.DEVICE: set(prompt.own)}


def test_trtllm_blocks_may_be_known_by_texts() -> None:
    """As its second hash, hex of a SHA-256."""
    told, prompt = Trtllm(), Asked([1, 2, 3, 4])
    block = {**told.block(prompt, 0, Level.DEVICE), "block_hash": "ab" * 32}
    told.say({"type": "stored", "parent_hash": None, "blocks": [block]})
    assert told.index.held == {Level.DEVICE: set(prompt.own)}


def test_trtllm_events_that_are_missing_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    told = Trtllm()
    told.hear([{"event_id": 4, "data": {"type": "removed", "block_hashes": []}}])
    assert "3 KV events were lost" in caplog.text
    caplog.clear()
    for number in (0, 1):  # another engine in its place
        told.hear([{"event_id": number, "data": {"type": "created", "num_blocks_per_cache_level": [1]}}])
    assert not caplog.text


def test_sglang_copies_of_what_nobody_knows_are_passed_over() -> None:
    told = Sglang()
    event = {"type": "BlockStored", "block_hashes": [9], "token_ids": [], "block_size": SIZE}
    told.hear(msgspec.msgpack.encode([0.5, [event]]))
    assert told.events.translator.unknown == 1


def test_a_medium_of_unknown_length_ends_with_the_next_text() -> None:
    offsets = MediaOffsets(SIZE)
    owners = ["a", "a", "", "a", "a", "a", "", ""]
    assert offsets.place([1, 2], None, owners) == [
        [MediumAt(0, 0, "a"), MediumAt(3, 0, "a")],
        [MediumAt(-1, 0, "a")],
    ]
    assert offsets.ends_within_medium(1)
    assert not offsets.ends_within_medium(2)


def test_media_offsets_forget_the_oldest() -> None:
    offsets = MediaOffsets(SIZE, max_media=2)
    assert [offsets.add(name, 9) for name in "abac"] == [None, None, None, "b"]
    for name in (1, 2, 3):
        offsets.place([name], None, ["a"] * SIZE)
    assert [offsets.ends_within_medium(name) for name in (1, 2, 3)] == [False, True, True]
