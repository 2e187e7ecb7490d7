"""Compares the KV index with a slow one on random input, and shows its promises by example."""

from __future__ import annotations

import random

from triptych.kv.index import KvIndex


def by_worker(index: KvIndex, hashes: list[int]) -> dict[str, int]:
    return {worker: blocks for blocks, bits in index.match(hashes) for worker in index.workers(bits)}


def test_longest_matches_come_first() -> None:
    index = KvIndex()
    index.store("a", [1, 2, 3])
    index.store("b", [1, 2, 3, 4, 5])
    index.store("c", [1, 2, 3])
    index.store("other", [9])
    assert [(blocks, sorted(index.workers(bits))) for blocks, bits in index.match([1, 2, 3, 4, 5, 6])] == [
        (5, ["b"]),
        (3, ["a", "c"]),
    ]
    assert index.match([]) == index.match([7, 1, 2]) == []
    assert by_worker(index, [1, 2]) == {"a": 2, "b": 2, "c": 2}


def test_equals_a_slow_index_on_random_input() -> None:
    rng = random.Random(5)
    index, slow = KvIndex(), {f"w{number}": set[int]() for number in range(70)}
    prompts = [[rng.getrandbits(64) for _ in range(rng.randrange(1, 40))] for _ in range(20)]
    prompts += [one[: rng.randrange(len(one) + 1)] + [rng.getrandbits(64) for _ in range(9)] for one in prompts]
    for _ in range(4000):
        worker, prompt = rng.choice(list(slow)), rng.choice(prompts)
        depth = rng.randrange(len(prompt) + 1)
        if rng.random() < 0.6:
            index.store(worker, prompt[:depth])
            slow[worker] |= set(prompt[:depth])
        else:  # Whatever hangs on them goes with them.
            gone = {
                one
                for other in prompts
                if depth < len(other) and prompt[depth : depth + 1] == other[depth : depth + 1]
                for one in other[depth:]
            }
            index.remove(worker, gone)
            slow[worker] -= gone
        asked = rng.choice(prompts)
        expected = {name: count for name, held in slow.items() if (count := leading(asked, held))}
        assert by_worker(index, asked) == expected
    assert len(index) == len(set().union(*slow.values()))


def leading(prompt: list[int], held: set[int]) -> int:
    return next((count for count, one in enumerate(prompt) if one not in held), len(prompt))


def test_a_forgotten_worker_matches_nothing_and_its_blocks_are_dropped() -> None:
    index = KvIndex()
    index.store("stays", range(60_000))
    index.store("goes", range(120_000))
    steps = index.forget("goes")
    assert by_worker(index, [0, 1, 2]) == {"stays": 3}
    assert by_worker(index, [70_000]) == {}
    assert index.match([70_000]) == [], "its bit matches nothing either"
    next(steps)
    index.store("goes", [0, 1])  # again, or another of the same name, before the old one is swept away
    assert by_worker(index, [0, 1, 2]) == {"stays": 3, "goes": 2}
    assert by_worker(index, [70_000]) == {}, "it is another one"
    for _ in steps:
        pass
    assert by_worker(index, [0, 1, 2]) == {"stays": 3, "goes": 2}
    assert len(index) == 60_000
    index.store("next", [0])  # with the bit of the one that is swept away
    assert by_worker(index, [0, 1, 2]) == {"stays": 3, "goes": 2, "next": 1}
    assert list(index.forget("never seen")) == []


def test_bits_of_forgotten_workers_are_used_again() -> None:
    index = KvIndex()
    for turn in range(300):
        index.store(f"w{turn}", [turn])
        for _ in index.forget(f"w{turn}"):
            pass
    assert index.bit("last") == 1


def test_bits_of_workers_that_stay_are_not_given_away() -> None:
    index = KvIndex()
    index.store("goes", [1])
    index.store("stays", [2])
    for _ in index.forget("goes"):
        pass
    index.store("comes", [3])
    assert by_worker(index, [2]) == {"stays": 1}
    assert by_worker(index, [3]) == {"comes": 1}


def test_blocks_may_go_while_a_worker_is_swept_away() -> None:
    index = KvIndex()
    index.store("goes", range(60_000, 120_000))
    index.store("stays", range(60_000))
    steps = index.forget("goes")
    next(steps)
    index.remove("stays", [59_999])
    for _ in steps:
        pass
    assert len(index) == 59_999


def test_the_number_of_blocks_that_a_worker_holds() -> None:
    index = KvIndex()
    assert index.held("a") == 0
    index.store("a", [1, 2, 3])
    index.store("a", [4])
    index.remove("a", [3, 4])
    assert index.held("a") == 2
    index.forget("a")
    assert index.held("a") == 0
