"""Tests a deployment in virtual time."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from triptych.config.router import Weights
from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Mode, Span
from triptych.router.policy import POLICIES
from triptych.simulate import split
from triptych.simulate.measures import Histogram, Measures, percentile
from triptych.simulate.profiles import DEMO_CPU, LLAMA_8B_H100, SECOND
from triptych.simulate.runs import ideal_hit_share
from triptych.simulate.trace import Trace, TraceRequest
from triptych.simulate.world import Scenario, World

SMALL = 64


def trace(seed: int, requests: int = 120, rate: float = 40.0) -> Trace:
    """Makes conversations whose turns repeat all earlier ones, some with pictures."""
    rng = random.Random(seed)
    now, made = 0.0, []
    said = [0] * 12
    for _ in range(requests):
        now += rng.expovariate(rate)
        who = rng.randrange(len(said))
        said[who] += rng.randint(20, 200)
        hashes = tuple(who * 10_000 + block for block in range(said[who] // SMALL))
        media = ((rng.randrange(30), 64),) if rng.random() < 0.4 else ()
        made.append(TraceRequest(now, said[who], rng.randint(1, 40), hashes, media))
    return Trace("conversations", SMALL, made)


def simulated(mode: Mode, policy: str, one: Trace, *, together: bool = True, **more: float) -> Measures:
    workers = split.by_work(mode, 6, one, DEMO_CPU)
    setting = Scenario(
        profile=DEMO_CPU, mode=mode, workers=workers, policy=policy, together=together, **more,  # type: ignore[arg-type]
    )  # fmt: skip
    return World(setting, one.block_size).run(one)


def hits(measures: Measures) -> float:
    return sum(one.cached_tokens for one in measures.records) / sum(one.prompt_tokens for one in measures.records)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("policy", ["kv", "round-robin"])
def test_taking_steps_together_changes_no_result(mode: Mode, policy: str) -> None:
    one = trace(3)
    together = simulated(mode, policy, one)
    apart = simulated(mode, policy, one, together=False)
    assert together.records == apart.records
    for share in (0.1, 0.5, 0.9, 0.99):
        assert together.itl.percentile(share) == apart.itl.percentile(share)


@pytest.mark.parametrize("policy", POLICIES)
def test_runs_are_deterministic_and_every_request_ends(policy: str) -> None:
    one = trace(5)
    first, second = (simulated(Mode.E_P_D, policy, one, seed=4) for _ in range(2))
    assert first.records == second.records
    for record in first.records:
        assert record.arrival < record.first <= record.end
        assert record.tpot >= DEMO_CPU.rates.step or record.output_tokens == 1


def test_a_single_request_takes_the_time_of_its_stages() -> None:
    one = Trace("one", SMALL, [TraceRequest(0.0, 128, 3, (), ((1, 64),))])
    rates = DEMO_CPU.rates
    prefill = rates.step + rates.prefilling(128, 0)
    decode = 2 * rates.step + rates.decoding(1, 129, 2)
    embeddings = rates.moving(64 * rates.embedding_token_bytes)
    kv = rates.moving(128 * rates.kv_token_bytes)
    ttft = {
        Mode.EPD: rates.encoding(64) + prefill,
        Mode.E_PD: rates.encoding(64) + embeddings + prefill,
        Mode.EP_D: rates.encoding(64) + prefill,
        Mode.E_P_D: rates.encoding(64) + embeddings + prefill,
    }
    for mode in Mode:
        [record] = simulated(mode, "kv", one).records
        assert record.first == ttft[mode]
        handed_over = kv if mode in (Mode.EP_D, Mode.E_P_D) else 0
        assert record.end == ttft[mode] + handed_over + decode


def test_routing_by_prefix_hits_more_than_round_robin_and_less_than_one_cache() -> None:
    one = trace(7, requests=400, rate=30.0)
    ideal = ideal_hit_share(one, 6 * DEMO_CPU.kv_tokens // SMALL)
    by_prefix, in_turns = hits(simulated(Mode.EPD, "kv", one)), hits(simulated(Mode.EPD, "round-robin", one))
    assert in_turns + 0.2 < by_prefix <= ideal


def test_late_kv_events_reduce_hits() -> None:
    one = trace(7)
    blind = simulated(Mode.EPD, "kv", one, event_delay_s=1000.0)
    assert hits(blind) < hits(simulated(Mode.EPD, "kv", one)) - 0.1


def test_a_request_that_fits_no_engine_is_not_served_and_holds_up_nobody() -> None:
    huge = TraceRequest(0.0, DEMO_CPU.kv_tokens + 1, 2)
    late = TraceRequest(0.1, DEMO_CPU.kv_tokens - 1, 500)  # its prompt fits, and its answer not
    one = Trace("huge", SMALL, [huge, TraceRequest(0.1, 100, 2), late])
    for mode in Mode:
        ends = [record.end for record in simulated(mode, "kv", one).records]
        assert ends[0] < 0 < ends[1]
        assert ends[2] < 0


def test_one_cache_hits_earlier_prompts_until_they_are_evicted() -> None:
    turns = [TraceRequest(float(turn), 130, 1, (1, 2)) for turn in range(2)]
    other = TraceRequest(0.5, 130, 1, (8, 9))
    assert ideal_hit_share(Trace("t", SMALL, turns), 2) == 128 / 260
    assert ideal_hit_share(Trace("t", SMALL, [turns[0], other, turns[1]]), 3) == 64 / 390
    assert ideal_hit_share(Trace("t", SMALL, [turns[0], other, turns[1]]), 2) == 0


def test_workers_are_split_by_the_work_of_stages() -> None:
    long_prompts = Trace("p", SMALL, [TraceRequest(0.0, 8000, 2)])
    long_answers = Trace("d", SMALL, [TraceRequest(0.0, 10, 2000)])
    most = {
        name: max(split.by_work(Mode.EP_D, 8, one, LLAMA_8B_H100).items(), key=lambda item: item[1])[0]
        for name, one in (("prompts", long_prompts), ("answers", long_answers))
    }
    assert most == {"prompts": Span.EP, "answers": Span.D}
    assert split.as_told("e=1, p=4,d=3", Mode.E_P_D) == {Span.E: 1, Span.P: 4, Span.D: 3}
    for text in ("e=1,p=4", "e=1,p=4,d=0", "e=1,p=x,d=2", "what"):
        with pytest.raises(ConfigError, match="--split"):
            split.as_told(text, Mode.E_P_D)
    with pytest.raises(ConfigError, match="needs at least 3"):
        split.by_work(Mode.E_P_D, 2, long_prompts, LLAMA_8B_H100)


def test_percentiles() -> None:
    histogram = Histogram()
    histogram.add(10**9, 98)
    histogram.add(5 * 10**9, 2)
    assert histogram.percentile(0.5) == pytest.approx(10**9, rel=0.005)
    assert histogram.percentile(0.99) == pytest.approx(5 * 10**9, rel=0.005)
    assert Histogram().percentile(0.5) == 0
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.25, 0.5, 0.51, 1.0)] == [1.0, 2.0, 3.0, 4.0]


def test_the_holder_of_a_prompt_takes_it_though_as_much_waits_there() -> None:
    """Otherwise, with equal weights, the prompt is computed again elsewhere."""
    held = tuple(range(31))
    turns = [(0.0, held, 2000), (5.0, (*held, *range(500, 550)), 5200), (5.001, (*held, *range(700, 710)), 2650)]
    one = Trace("turns", SMALL, [TraceRequest(at, tokens, 1, hashes) for at, hashes, tokens in turns])
    found = {}
    for weight in (0.25, 1.0):
        weights = Weights(prefill_weight=weight)
        setting = Scenario(profile=DEMO_CPU, mode=Mode.EPD, workers={Span.EPD: 2}, policy="kv", weights=weights)
        found[weight] = [record.cached_tokens for record in World(setting, SMALL).run(one).records]
    assert found == {0.25: [0, 31 * SMALL, 31 * SMALL], 1.0: [0, 31 * SMALL, 0]}


def test_times_are_in_order_of_arrival_for_one_worker() -> None:
    one = Trace("t", SMALL, [TraceRequest(at / 10, 300, 1) for at in range(10)])
    setting = Scenario(profile=DEMO_CPU, mode=Mode.EPD, workers={Span.EPD: 1}, policy="random")
    records = World(setting, SMALL).run(one).records
    assert all(before.first <= after.first for before, after in pairwise(records))
    assert records[3].arrival == 3 * SECOND // 10
