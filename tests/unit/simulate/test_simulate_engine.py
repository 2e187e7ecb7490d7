"""Tests the engine model: blocks, prefix cache, scheduling and the time of steps."""

from __future__ import annotations

import random

import msgspec
import pytest

from benchmarks import engine_fit
from triptych.simulate.blocks import DEVICE, HOST, BlockChange, BlockPool
from triptych.simulate.engine_model import EmbeddingCacheModel, EngineJob, EngineModel, StepResult
from triptych.simulate.profiles import PROFILES, Profile, Rates

RATES = Rates(
    step=1000,
    prefill_token=10,
    prefill_pair=1,
    decode_sequence=100,
    kv_token=2,
    encode_call=500,
    encode_token=3,
    transfer_call=7,
    bytes_per_s=10**12,
    kv_token_bytes=4,
    embedding_token_bytes=2,
)


def profile(*, kv_tokens: int = 400, budget: int = 16, sequences: int = 8) -> Profile:
    return Profile(
        name="test",
        about="",
        rates=RATES,
        kv_tokens=kv_tokens,
        max_num_batched_tokens=budget,
        max_num_seqs=sequences,
        embedding_cache_tokens=50,
    )


def drain(engine: EngineModel) -> tuple[int, list[tuple[int, StepResult]]]:
    """Runs until no work is left. Returns all picoseconds, and (time, result) of each step."""
    now, told = 0, []
    while step := engine.plan():
        now += step.duration(step.count)
        told.append((now, engine.finish(step)))
    return now, told


def test_blocks_are_evicted_oldest_prompt_and_last_block_first() -> None:
    pool = BlockPool(4)
    first = [pool.take(key) for key in (1, 2, 3)]
    pool.release(first)
    assert pool.matched([1, 2, 9], 3) == 2
    assert pool.changes() == [BlockChange(True, 1), BlockChange(True, 2), BlockChange(True, 3)]
    pool.take(7)  # the blank one
    pool.take(8)
    assert pool.changes() == [BlockChange(True, 7), BlockChange(False, 3), BlockChange(True, 8)]
    assert pool.matched([1, 2, 3], 3) == 2
    pool.use(1)
    pool.take()
    assert pool.changes() == [BlockChange(False, 2)]
    assert pool.free == 0


def test_evicted_blocks_go_to_host_memory_and_come_back() -> None:
    pool = BlockPool(3, host_blocks=2)
    pool.release([pool.take(key) for key in (1, 2, 3)])
    assert pool.changes() == [BlockChange(True, key, level) for key in (1, 2, 3) for level in (DEVICE, HOST)]
    for key in (7, 8):
        pool.take(key)
    assert [one for one in pool.changes() if not one.stored] == [BlockChange(False, 3), BlockChange(False, 2)]
    assert (pool.matched([1, 2, 3], 3), pool.matched_on_host([2, 3, 9])) == (1, 2)
    assert (pool.hashes(DEVICE), pool.hashes(HOST)) == ([7, 8, 1], [7, 8, 1, 2, 3])
    pool.release([7, 8])
    pool.use(1)
    assert pool.read_back([2]) == [2]
    assert pool.changes() == [BlockChange(False, 8), BlockChange(True, 2)]
    pool.take(9)
    assert pool.changes() == [
        BlockChange(False, 7),
        BlockChange(False, 3, HOST),
        BlockChange(True, 9),
        BlockChange(True, 9, HOST),
    ]
    pool.release([9])
    pool.take(8)
    assert pool.changes() == [BlockChange(False, 9), BlockChange(True, 8)], "a copy in host memory is told of already"


def test_host_memory_always_holds_whole_prefixes() -> None:
    rng = random.Random(3)
    pool, held = BlockPool(8, host_blocks=6), {level: set[int]() for level in (DEVICE, HOST)}
    before = {}
    for _ in range(2000):
        first, second = rng.randrange(1, 4), rng.randrange(1, 4)
        prompt = [first, 10 * first + second, 100 * first + 10 * second + rng.randrange(2)]
        before.update(zip(prompt[1:], prompt, strict=False))
        found = prompt[: pool.matched(prompt, 3)]
        for key in found:
            pool.use(key)
        below = prompt[len(found) :]
        used = [*found, *pool.read_back(below[: pool.matched_on_host(below)])]
        used += [pool.take(key) for key in prompt[len(used) :]]
        pool.release(used)
        for change in pool.changes():
            assert (change.hash in held[change.level]) != change.stored, "told twice"
            (held[change.level].add if change.stored else held[change.level].remove)(change.hash)
        for level, here in held.items():
            assert here == set(pool.hashes(level))
            assert all(before[one] in here for one in here if one in before)


def test_blocks_read_back_take_time_and_are_not_computed_again() -> None:
    rates = profile().rates
    times = []
    for host in (0, 64):
        engine = EngineModel(msgspec.structs.replace(profile(kv_tokens=24, budget=100), host_kv_tokens=host), 4)
        for number, key in enumerate((1, 100, 200, 1)):
            engine.submit(job := EngineJob(number, 20, 1, [key + place for place in range(5)]))
            took, _ = drain(engine)
        times.append(took)
        assert job.cached_tokens == (16 if host else 0)
    assert times[0] == rates.step + rates.prefilling(20, 0)
    assert times[1] == rates.step + rates.prefilling(4, 16) + rates.moving(16 * rates.kv_token_bytes)


def test_a_shared_block_is_freed_by_its_last_user() -> None:
    pool = BlockPool(2)
    pool.take(1)
    pool.use(1)
    pool.release([1])
    assert pool.free == 1
    pool.release([1])
    assert pool.free == 2
    assert pool.holds(1)


def test_a_block_filled_while_decoding_is_reported_once() -> None:
    pool = BlockPool(3)
    mine, other = pool.take(), pool.take()
    assert pool.name(mine, 5) == 5
    assert pool.name(other, 5) == 5
    assert pool.changes() == [BlockChange(True, 5)]
    assert pool.free == 2
    pool.release([5])
    assert pool.free == 2


def test_the_time_of_a_small_case_equals_the_hand_calculation() -> None:
    engine = EngineModel(profile(), 4)
    engine.submit(EngineJob(0, prompt_tokens=20, output_tokens=3))
    _, told = drain(engine)
    # 16 tokens: pairs 16*17/2; 4 more after a context of 16: 4*16 + 4*5/2; then two tokens with contexts of 21 and 22.
    first = 1000 + 160 + 136
    second = first + 1000 + 40 + 74
    assert [when for when, _ in told] == [first, second, second + 2 * 1100 + 2 * (21 + 22)]
    assert [len(one.first) for _, one in told] == [0, 1, 0]
    assert [len(one.done) for _, one in told] == [0, 0, 1]


def test_prefix_hits_are_whole_blocks_and_leave_a_token_to_compute() -> None:
    engine = EngineModel(profile(budget=100), 4)
    for number, (tokens, hashes) in enumerate([(12, (1, 2, 3)), (12, (1, 2, 3)), (15, (1, 2, 9)), (15, (8, 2, 3))]):
        job = EngineJob(number, tokens, 2, hashes)
        engine.submit(job)
        drain(engine)
        assert job.cached_tokens == [0, 8, 8, 0][number]


def test_prefill_shares_the_token_budget_with_decoding() -> None:
    engine = EngineModel(profile(budget=16), 4)
    engine.submit(EngineJob(0, 8, 10))
    step = engine.plan()
    assert step is not None
    engine.finish(step)
    engine.submit(EngineJob(1, 40, 2))
    chunks = []
    for _ in range(3):
        step = engine.plan()
        assert step is not None
        chunks.append([tokens for _, tokens in step.work])
        engine.finish(step)
    assert chunks == [[1, 15], [1, 15], [1, 10]]


def test_running_sequences_are_bounded() -> None:
    engine = EngineModel(profile(budget=1000, sequences=2), 4)
    for number in range(3):
        engine.submit(EngineJob(number, 4, 4))
    engine.plan()
    assert len(engine.running) == 2
    assert len(engine.waiting) == 1


def test_without_free_blocks_the_latest_sequence_is_preempted_and_recomputed() -> None:
    engine = EngineModel(profile(kv_tokens=24, budget=100), 4)
    jobs = [EngineJob(0, 8, 8), EngineJob(1, 8, 8)]
    for job in jobs:
        engine.submit(job)
    order, preempted = [], []
    while step := engine.plan():
        preempted += [job.id for job in engine.preempted]
        order += [job.id for job in engine.finish(step).done]
    assert preempted == [1]
    assert order == [0, 1]
    assert [job.made for job in jobs] == [8, 8]
    assert engine.pool.free == 6


def test_media_are_encoded_once_while_cached() -> None:
    cache = EmbeddingCacheModel(50)
    assert cache.lacked([(1, 30), (2, 20), (1, 30)]) == 50
    assert cache.lacked([(1, 30)]) == 0
    assert cache.lacked([(3, 10)]) == 10
    assert cache.lacked([(2, 20)]) == 20  # it was the one used longest ago
    engine = EngineModel(profile(budget=100), 4)
    times = []
    for number in range(2):
        engine.submit(EngineJob(number, 10, 1, media=((5, 8),)))
        times.append(drain(engine)[0])
    assert times[0] - times[1] == 500 + 3 * 8


def test_a_prompt_prefilled_elsewhere_only_decodes() -> None:
    engine = EngineModel(profile(), 4)
    engine.submit(EngineJob(0, 20, 3, (1, 2, 3, 4, 5), arrived_kv=True, made=1, resumed=True))
    now, told = drain(engine)
    assert now == 2 * 1100 + 2 * (21 + 22)
    assert [len(one.resumed) for _, one in told] == [1, 0]
    assert engine.held_tokens([1, 2, 3, 4, 5]) == 20


def test_steps_taken_together_last_as_long_as_one_by_one() -> None:
    apart = sum(RATES.decoding(3, 50 + 3 * number, 1) for number in range(9))
    assert RATES.decoding(3, 50, 9) == apart
    engine = EngineModel(profile(), 16)
    engine.submit(EngineJob(0, 4, 13))
    engine.finish(engine.plan())  # type: ignore[arg-type]
    step = engine.plan()
    assert step is not None
    assert step.count == 12
    assert [step.steps_by(at) for at in (0, step.duration(1), step.duration(1) + 1, 10**9)] == [1, 1, 2, 12]


@pytest.mark.parametrize("seed", range(5))
def test_no_block_is_lost_and_every_token_is_made_on_random_input(seed: int) -> None:
    rng = random.Random(seed)
    engine = EngineModel(profile(kv_tokens=160, budget=24, sequences=6), 4)
    jobs, done, held = [], set(), set()
    for number in range(60):
        prompt = rng.randint(1, 60)
        family = rng.randrange(3)
        hashes = tuple(family * 1000 + block for block in range(prompt // 4))
        jobs.append(EngineJob(number, prompt, rng.randint(1, 30), hashes))
        engine.submit(jobs[-1])
        for _ in range(rng.randint(0, 6)):
            if step := engine.plan():
                done |= {job.id for job in engine.finish(step).done}
                used = {key for job in engine.running for key in job.blocks}
                assert engine.pool.free + len(used) == engine.pool.blocks
        for stored, key, _ in engine.pool.changes():
            assert (key in held) is not stored
            (held.add if stored else held.discard)(key)
        for prefix in range(3):  # what is held of a prompt has no gaps
            blocks = sorted(key - prefix * 1000 for key in held if key // 1000 == prefix)
            assert blocks == list(range(len(blocks)))
    _, told = drain(engine)
    done |= {job.id for _, one in told for job in one.done}
    assert done == set(range(60))
    assert all(job.made == job.output_tokens for job in jobs)
    assert engine.pool.free == engine.pool.blocks


def test_the_published_profile_decodes_as_fast_as_published() -> None:
    rates = PROFILES["llama-8b-h100"].rates
    assert rates.step + rates.decoding(1, 200, 1) == pytest.approx(4.6e9, rel=0.05)  # NIM, one request at a time


def test_the_rates_of_the_published_profile_equal_the_fit() -> None:
    rates = PROFILES["llama-8b-h100"].rates
    named = (rates.step, rates.prefill_token, rates.prefill_pair, rates.decode_sequence, rates.kv_token)
    for mine, fitted in zip(named, engine_fit.fit(), strict=True):
        assert mine / 1e12 == pytest.approx(fitted, rel=0.12)  # rounded


def test_the_model_under_full_load_is_as_fast_as_published() -> None:
    for point, requests in (((2048, 128), 1000), ((20000, 2000), 60)):
        speed = engine_fit.modelled(point, requests)
        assert speed == pytest.approx(engine_fit.PUBLISHED[point], rel=0.15), point
