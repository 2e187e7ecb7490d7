"""Workers are chosen by what they hold and by their load."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from triptych.config.router import RouterConfig, Weights
from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.errors import BadRequest
from triptych.contracts.kv_events import KvBatch, KvChange, Level, Load, packed
from triptych.contracts.spans import Span
from triptych.kv.guessed_blocks import GuessedBlocks
from triptych.kv.index import KvIndex, Match
from triptych.kv.prompt_keys import prompt_keys
from triptych.router.policy import POLICIES, Candidate, Policy, cost
from triptych.router.routing import EACH, STEP, PromptKeys, Routing, RoutingHint
from triptych.router.workload import Workload

SIZE = 4


def worker(name: str, *, reports: bool = True, block_size: int = SIZE) -> Instance:
    card = ModelCard(name="m", path="/m", context_length=99, block_size=block_size)
    fixed: dict[str, Any] = {
        "component": "x",
        "span": Span.PD,
        "capable_span": Span.PD,
        "engine": "mock",
        "host": "",
        "port": 1,
    }
    return Instance(id=name, name=name, model=card, reports_kv=reports, **fixed)


def prompt(length: int = 16, seed: int = 0) -> PromptKeys:
    return PromptKeys(prompt_keys(range(seed, seed + length)))


def told(asked: PromptKeys, blocks: int, level: Level = Level.DEVICE, *, reset: bool = False) -> KvBatch:
    return KvBatch(0, [KvChange(level, True, packed(asked.hashes(SIZE)[:blocks]))], reset=reset)


A, B = worker("a"), worker("b")


def test_the_worker_that_holds_more_of_the_prompt_is_chosen() -> None:
    routing, asked = Routing(RouterConfig()), prompt()
    routing.apply("a", told(asked, 1))
    routing.apply("b", told(asked, 3))
    assert routing.choose("pd", [A, B], asked) is B
    assert [routing.held_tokens(one, asked) for one in (A, B)] == [4, 12]
    assert routing.choose("pd", [A, B], prompt(seed=100)) is A, "nobody holds it, and it has more room"


def test_a_few_cached_tokens_do_not_outweigh_a_busy_worker() -> None:
    routing, asked = Routing(RouterConfig()), prompt()
    routing.apply("b", told(asked, 2))
    with routing.reserve(B, Load(prefill_tokens=33)):
        assert routing.choose("pd", [A, B], asked) is A
    assert routing.choose("pd", [A, B], asked) is B


def test_the_load_of_other_frontends_counts() -> None:
    workload = Workload()
    workload.begin("a", Load(10, 10, 1))
    workload.report("a", Load(20, 40, 2))
    assert workload.of("a") == Load(30, 50, 3)
    assert workload.requests("a") == 3
    workload.end("a", Load(10, 0, 0))
    assert workload.of("a") == Load(20, 50, 3)
    workload.end("a", Load(0, 10, 1))
    workload.forget("a")
    assert workload.of("a") == Load()


def test_load_reports_decide_if_nothing_is_cached() -> None:
    routing = Routing(RouterConfig())
    routing.report("a", Load(prefill_tokens=500, kv_tokens=500, requests=1))
    assert routing.choose("pd", [A, B], prompt()) is B
    assert routing.choose("d", [A, B], prompt()) is B, "decoding goes by what is decoded"


def test_lower_tiers_count_less_than_the_device() -> None:
    routing, asked = Routing(RouterConfig()), prompt()
    routing.apply("a", told(asked, 3))
    routing.apply("a", told(asked, 3, Level.HOST))
    routing.apply("b", told(asked, 3, Level.HOST))
    assert routing.choose("pd", [A, B], asked) is A
    routing.apply("b", told(asked, 4, Level.DISK))
    weights = Weights(host_credit=1, disk_credit=1)
    assert cost(Candidate("b", Load(), (0, 12, 16)), 16, weights) == 0
    assert cost(Candidate("b", Load(), (0, 12, 16)), 16, Weights(host_credit=0.5, disk_credit=0.25)) == 9


def test_a_reset_replaces_everything_held() -> None:
    routing, asked = Routing(RouterConfig()), prompt()
    routing.apply("a", told(asked, 4))
    for _ in routing.apply("a", told(asked, 1, reset=True)):
        pass
    assert routing.held_tokens(A, asked) == 4
    for _ in routing.forget("a"):
        pass
    assert routing.held_tokens(A, asked) == 0


def test_prompts_of_silent_workers_are_remembered_for_a_while() -> None:
    routing, asked = Routing(RouterConfig(router_remember_s=10)), prompt()
    silent = worker("silent", reports=False)
    routing.prefilled(silent, asked, now_s=0)
    routing.prefilled(A, asked, now_s=0)
    assert [routing.held_tokens(one, asked) for one in (silent, A)] == [16, 0]
    routing.prefilled(A, asked, now_s=11)
    assert routing.held_tokens(silent, asked) == 0


def test_a_prompt_is_looked_up_once_between_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    routing, asked, looked_up = Routing(RouterConfig()), prompt(), list[int]()
    match = KvIndex.match

    def counted(index: KvIndex, hashes: Sequence[int]) -> Match:
        looked_up.append(len(hashes))
        return match(index, hashes)

    monkeypatch.setattr(KvIndex, "match", counted)
    held = []
    for change in (None, told(asked, 1), told(asked, 3), told(asked, 2, reset=True)):
        if change is not None:
            routing.apply("b", change)
        routing.choose("pd", [A, B], asked)
        held.append(routing.held_tokens(B, asked))
        assert len(looked_up) == len(held) * len(Level)
    routing.forget("b")
    assert [*held, routing.held_tokens(B, asked)] == [0, 4, 12, 8, 0]
    silent = worker("silent", reports=False)
    routing.prefilled(silent, asked, now_s=0)
    assert routing.held_tokens(silent, asked) == 16
    assert routing.held_tokens(silent, prompt(8)) == 8, "another prompt is looked up by itself"


def test_long_prompts_of_silent_workers_are_remembered_by_landmarks() -> None:
    routing, asked = Routing(RouterConfig()), prompt((EACH + 3 * STEP) * SIZE + 5)
    silent = worker("silent", reports=False)
    assert len(asked.landmarks(SIZE)) == EACH + 3
    routing.prefilled(silent, asked, now_s=0)
    assert routing.held_tokens(silent, asked) == (EACH + 3 * STEP) * SIZE
    for shared, guessed in ((EACH - 1, EACH - 1), (EACH + STEP - 1, EACH), (EACH + 2 * STEP + 1, EACH + 2 * STEP)):
        other = PromptKeys(prompt_keys([*asked.tokens[: shared * SIZE], *[99] * 4000]))
        assert routing.held_tokens(silent, other) == guessed * SIZE
    assert routing.choose("pd", [A, silent], asked) is silent
    for _ in routing.forget("silent"):
        pass
    assert routing.held_tokens(silent, asked) == 0


def test_the_blocks_used_longest_ago_are_forgotten_first() -> None:
    recent = GuessedBlocks(keep_s=100, max_blocks_a_worker=3)
    assert recent.note("a", [1, 2], 0) == []
    assert recent.note("a", [1, 3], 1) == []
    assert recent.note("a", [4], 2) == [2]
    assert recent.note("a", [5, 6], 3) == [3, 1], "what hangs on a block goes before it"
    recent.forget("a")
    assert recent.expired(999) == []


def test_workers_of_other_block_sizes_are_compared_by_tokens() -> None:
    large = worker("large", block_size=8)
    routing, asked = Routing(RouterConfig()), prompt(24)
    routing.apply("a", told(asked, 3))
    hashes = packed(asked.hashes(8)[:2])
    routing.apply("large", KvBatch(0, [KvChange(0, True, hashes)]))
    assert [routing.held_tokens(one, asked) for one in (A, large)] == [12, 16]
    assert routing.choose("pd", [A, large], asked) is large


def wishing(asked: PromptKeys, **wish: str) -> PromptKeys:
    asked.hint = RoutingHint(**wish)
    return asked


def test_a_session_stays_at_its_worker_unless_that_is_overloaded() -> None:
    pool = [worker(f"w{number}") for number in range(8)]
    routing = Routing(RouterConfig(router_sessions=True))
    homes = {
        session: {routing.choose("pd", pool, wishing(prompt(seed=seed), session=session)).name for seed in range(5)}
        for session in ("ann", "bob", "cid", "dan", "eve")
    }
    assert all(len(one) == 1 for one in homes.values())
    assert len(set.union(*homes.values())) > 1, "not all at one worker"
    [mine] = [one for one in pool if one.name in homes["ann"]]
    with routing.reserve(mine, Load(requests=3)):
        assert routing.choose("pd", pool, wishing(prompt(), session="ann")) is not mine
    assert routing.choose("pd", list(reversed(pool)), wishing(prompt(), session="ann")) is mine
    off = Routing(RouterConfig())
    assert len({off.choose("pd", pool, wishing(prompt(), session=one)).name for one in homes}) == 1


def test_a_request_may_name_its_worker() -> None:
    routing = Routing(RouterConfig(router_policy="direct"))
    assert routing.choose("pd", [A, B], wishing(prompt(), instance="b")) is B
    assert routing.choose("d", [A, B], prompt()) in (A, B), "who decodes what was prefilled elsewhere is chosen by load"
    for wrong in ("", "c"):
        with pytest.raises(BadRequest, match=r"x-triptych-instance .*now: a, b"):
            routing.choose("pd", [A, B], wishing(prompt(), instance=wrong))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_chooses_one_of_the_candidates(name: Any) -> None:
    policy = Policy(name, Weights(), random.Random(1))
    candidates = [Candidate(str(index), Load(requests=index)) for index in range(5)]
    chosen = [policy.choose(candidates, 10).id for _ in range(200)]
    match name:
        case "round-robin":
            assert chosen[:5] == ["1", "2", "3", "4", "0"]
        case "random" | "power-of-two":
            assert len(set(chosen)) >= 4
        case _:
            assert set(chosen) == {"0"}
    if name == "power-of-two":
        assert "4" not in chosen, "the most loaded one never wins"


def test_temperature_spreads_requests_over_nearly_equal_workers() -> None:
    policy = Policy("kv", Weights(temperature=0.2), random.Random(1))
    near, far = Candidate("near", Load(), (8, 8, 8)), Candidate("far", Load(prefill_tokens=100))
    same = Candidate("same", Load(), (8, 8, 8))
    chosen = [policy.choose([near, same, far], 10).id for _ in range(300)]
    assert chosen.count("near") > 100 < chosen.count("same")
    assert "far" not in chosen
