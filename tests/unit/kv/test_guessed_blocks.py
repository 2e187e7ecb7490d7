"""The blocks remembered of a worker are bounded, however often the same prompt is sent."""

from __future__ import annotations

from triptych.kv.guessed_blocks import GuessedBlocks


def test_a_block_used_again_outlives_its_children() -> None:
    recent = GuessedBlocks(keep_s=10)
    assert recent.note("a", [1, 2, 3], 0) == []
    assert recent.note("a", [1, 2, 4], 6) == []
    assert recent.note("a", [9], 11) == [3]
    assert recent.expired(17) == [("a", [4, 2, 1])]
    assert recent.expired(22) == [("a", [9])]


def test_repeated_prompts_are_forgotten_only_when_others_need_their_place() -> None:
    recent = GuessedBlocks(keep_s=100, max_blocks_a_worker=8)
    for _ in range(1000):
        assert recent.note("a", [1, 2], 0) == []
    assert recent.note("a", [3, 4, 5, 6, 7, 8], 1) == []
    assert recent.note("a", [9], 2) == [2, 1]


def test_many_blocks_are_forgotten_in_steps() -> None:
    recent = GuessedBlocks(keep_s=1)
    for first in range(0, 20_000, 1_000):
        recent.note("a", range(first, first + 1_000), 0)
    steps = []
    while gone := recent.expired(5):
        steps.append(len(gone[0][1]))
    assert sum(steps) == 20_000
    assert max(steps) <= 5_000
