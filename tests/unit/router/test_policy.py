"""Tests the cost of a worker, and how policies use it."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from triptych.config.router import Weights
from triptych.contracts.kv_events import Load
from triptych.router.policy import POLICIES, Candidate, Policy, cost

EVEN = Weights(prefill_weight=1.0, decode_weight=1.0)


def test_the_cost_adds_what_is_left_what_waits_and_what_runs() -> None:
    weights = Weights(prefill_weight=0.25, decode_weight=0.5)
    assert cost(Candidate("a", Load(prefill_tokens=8, kv_tokens=16, requests=3)), 100, weights) == 100 + 2 + 8


def test_a_worker_that_holds_nothing_gets_no_credit() -> None:
    assert cost(Candidate("a", Load()), 16, Weights(host_credit=1.0, disk_credit=1.0)) == 16


def test_the_credit_is_never_more_than_the_prompt() -> None:
    assert cost(Candidate("a", Load(prefill_tokens=4), (32, 32, 32)), 16, EVEN) == 4


@pytest.mark.parametrize("name", POLICIES)
def test_a_single_candidate_is_taken(name: Any) -> None:
    only = Candidate("a", Load())
    assert Policy(name, Weights(), random.Random(1)).choose([only], 16) is only


def test_equal_costs_are_decided_by_requests_then_blocks_then_id() -> None:
    policy = Policy("kv", EVEN, random.Random(1))
    busy, full, later, first = (
        Candidate("a", Load(requests=2)),
        Candidate("b", Load(requests=1), blocks=9),
        Candidate("d", Load(requests=1), blocks=8),
        Candidate("c", Load(requests=1), blocks=8),
    )
    for candidates, best in (([busy, full], full), ([full, later], later), ([later, first], first)):
        assert policy.choose(candidates, 16) is best
        assert policy.choose(candidates[::-1], 16) is best


class Drawn(random.Random):
    """Records the odds of each draw, and takes the last candidate."""

    def choices(self, population: Any, weights: Any = None, **_: Any) -> Any:
        self.odds = weights
        return [population[-1]]


@pytest.mark.parametrize(("prompt_tokens", "scale"), [(16, 8.0), (1, 0.5), (0, 0.5)])
def test_the_temperature_is_a_share_of_the_prompt(prompt_tokens: int, scale: float) -> None:
    drawn = Drawn()
    policy = Policy("kv", Weights(prefill_weight=1.0, decode_weight=1.0, temperature=0.5), drawn)
    candidates = [Candidate("a", Load(prefill_tokens=3)), Candidate("b", Load(prefill_tokens=7))]
    assert policy.choose(candidates, prompt_tokens) is candidates[1]
    assert drawn.odds == pytest.approx([1.0, math.exp(-4 / scale)])


def test_the_less_loaded_of_two_drawn_workers_is_taken() -> None:
    policy = Policy("power-of-two", Weights(), random.Random(1))
    loads = [Load(requests=1), Load(requests=1, prefill_tokens=1), Load(requests=1, kv_tokens=1), Load(requests=2)]
    candidates = [Candidate(str(place), load) for place, load in enumerate(loads)]
    assert {policy.choose(candidates[place : place + 2], 1).id for place in (0, 2)} == {"0", "2"}
    assert policy.choose(candidates[1:3], 1).id == "1", "what waits and what runs count alike; then the id"


def test_round_robin_goes_by_id_whatever_the_order() -> None:
    policy = Policy("round-robin", Weights(), random.Random(1))
    candidates = [Candidate(id, Load()) for id in "cab"]
    chosen = "".join(policy.choose(random.Random(n).sample(candidates, 3), 1).id for n in range(6))
    assert chosen in "abcabcabc"
