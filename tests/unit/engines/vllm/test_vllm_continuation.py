"""What sampling becomes where another worker has begun the answer."""

from __future__ import annotations

import msgspec
import pytest

from triptych.contracts.errors import AbilityMissing, BadRequest
from triptych.contracts.request import Guided, Sampling
from triptych.engines.vllm.continuation import first_token, resumed

PLAIN = Sampling(max_tokens=10)


def with_(**fields: object) -> Sampling:
    return msgspec.structs.replace(PLAIN, **fields)


@pytest.mark.parametrize(
    ("sampling", "needs"),
    [
        (PLAIN, False),
        (with_(presence_penalty=0.5), True),
        (with_(frequency_penalty=-0.5), True),
        (with_(guided=Guided("json_object")), True),
        (with_(repetition_penalty=1.2), False),
        (with_(min_p=0.1, top_k=5, top_p=0.9, seed=1, min_tokens=3, logit_bias={1: 2.0}), False),
    ],
)
def test_what_needs_to_know_which_tokens_are_the_answers(sampling: Sampling, needs: bool) -> None:
    assert sampling.needs_history is needs


def test_nothing_said_changes_nothing() -> None:
    sampling = with_(presence_penalty=0.5, seed=3)
    assert resumed(sampling, 0) is sampling


def test_said_tokens_are_counted_off() -> None:
    assert resumed(with_(min_tokens=4), 3) == with_(max_tokens=7, min_tokens=1)
    assert resumed(with_(min_tokens=2), 3).min_tokens == 0


def test_a_seed_is_another_one_at_each_place_and_the_same_at_the_same() -> None:
    seeds = [resumed(with_(seed=7), said).seed for said in range(10)]
    assert len(set(seeds)) == 10
    assert seeds == [resumed(with_(seed=7), said).seed for said in range(10)]
    assert seeds[1] != resumed(with_(seed=8), 1).seed
    assert all(0 <= seed < 2**63 for seed in seeds if seed is not None)


def test_without_a_seed_none_is_made_up() -> None:
    assert resumed(PLAIN, 4).seed is None


@pytest.mark.parametrize(
    "field", [{"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"guided": Guided("json_object")}]
)
def test_an_answer_with_history_does_not_go_on_elsewhere(field: dict[str, object]) -> None:
    with pytest.raises(AbilityMissing, match="cannot go on"):
        resumed(with_(**field), 1)


@pytest.mark.parametrize("said", [10, 11])
def test_nothing_left_to_say_is_refused(said: int) -> None:
    with pytest.raises(BadRequest) as refused:
        resumed(PLAIN, said)
    assert refused.value.param == "max_tokens"


def test_the_first_token_is_drawn_as_the_whole_answers_would_be() -> None:
    sampling = with_(temperature=0.7, seed=4, min_tokens=5, logprobs=2, stop_token_ids=(9,), logit_bias={1: -5.0})
    assert first_token(sampling) == msgspec.structs.replace(sampling, max_tokens=1, min_tokens=1)
    assert first_token(PLAIN).min_tokens == 0
