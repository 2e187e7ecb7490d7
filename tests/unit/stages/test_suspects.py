"""Which request is the one thing common to two falls."""

from __future__ import annotations

import asyncio
import random

import pytest
from msgspec.structs import replace

from triptych.contracts.media import Picture
from triptych.contracts.request import GenerateRequest, Guided, Sampling
from triptych.kv.prompt_keys import prompt_keys
from triptych.router.routing import PromptKeys
from triptych.stages.apart import Apart
from triptych.stages.suspects import WAVE_S, Suspects, name_of
from triptych.stages.unanswered import LINGER_S, MAX_LINGERING, Unanswered, Visit

P, Q, R, S = b"P", b"Q", b"R", b"S"


def suspects(keep_s: float = 600.0, most: int = 10, **settings: int) -> Suspects:
    return Suspects(keep_s, most, **settings)


def test_alone_at_both() -> None:
    one = suspects()
    assert one.fell("a", [P], 0.0) == []
    assert one.is_suspect(P)
    assert one.fell("b", [P, Q], 1.0) == [P]
    assert one.quarantine_s(P, 1.0) == 600.0
    assert one.quarantine_s(Q, 1.0) is None
    assert (one.is_suspect(P), one.is_suspect(Q)) == (False, True)
    assert one.quarantine_s(P, 601.0) is None


def test_several_at_both_are_not_told_apart_until_the_next_fall_does() -> None:
    one = suspects()
    one.fell("a", [P, Q, R], 0.0)
    assert one.fell("b", [P, Q], 1.0) == []
    one.answered(Q)
    assert one.fell("c", [P], 2.0) == [P]


def sealed(name: bytes) -> bytes:
    return b"sealed " + name


def test_what_others_put_in_quarantine_is_refused_until_its_time_is_over() -> None:
    one = Suspects(600.0, 10, seal=sealed)
    one.quarantine([(sealed(P), 30.0), (sealed(Q), 10.0), (sealed(R), 1e9)], 100.0)
    assert [one.quarantine_s(name, 100.0) for name in (P, Q, R, S)] == [30.0, 10.0, 600.0, None]
    assert one.any
    assert one.quarantine_s(Q, 110.0) is None
    assert one.quarantined_for(110.0) == {sealed(P): 20.0, sealed(R): 590.0}
    one.release(sealed(R))
    one.release(sealed(R))
    assert one.quarantine_s(R, 110.0) is None
    one.expire(130.0)
    assert not one.any


def test_what_is_put_in_quarantine_here_goes_by_its_sealed_name() -> None:
    one = Suspects(600.0, 10, seal=sealed)
    one.fell("a", [P], 0.0)
    assert one.fell("b", [P], 1.0) == [P]
    assert one.quarantined_for(1.0) == {sealed(P): 600.0}
    assert one.quarantine_s(P, 1.0) == 600.0


def test_a_full_quarantine_forgets_the_entries_that_end_first() -> None:
    one = suspects(most=2)
    one.quarantine([(P, 30.0), (Q, 10.0), (R, 20.0)], 0.0)
    assert one.quarantined_for(0.0) == {R: 20.0, P: 30.0}


def test_where_it_is_turned_off_others_are_not_believed() -> None:
    one = suspects(keep_s=0.0)
    one.quarantine([(P, 30.0)], 0.0)
    assert one.quarantine_s(P, 0.0) is None


def test_the_same_worker_twice_is_one_fall_and_so_are_copies_of_a_request() -> None:
    one = suspects()
    assert one.fell("a", [P, P], 0.0) == one.fell("a", [P], 1.0) == []
    assert one.falls == 1
    assert one.fell("b", [P, P], 2.0) == [P]


def test_a_request_answered_since_its_last_fall_starts_with_a_clean_record() -> None:
    one = suspects()
    one.fell("a", [P], 0.0)
    one.answered(P)
    assert one.fell("b", [P], 10.0) == []
    assert one.fell("c", [P], 20.0) == [P]


def test_an_innocent_that_met_another_suspect_is_not_blamed_for_its_fall() -> None:
    """Each has one fall of its own before; which of them did this one nobody can say."""
    one = suspects()
    one.fell("a", [P], 0.0)
    one.fell("c", [R], 0.0)
    assert one.fell("b", [P, R], 1.0) == []


@pytest.mark.parametrize("others", [[], [R]], ids=["with nothing to answer", "with others' requests"])
def test_a_fall_elsewhere_at_nearly_the_same_time_excuses_once(others: list[bytes]) -> None:
    one = suspects()
    one.fell("a", [P], 0.0)
    one.fell("x", others, 0.5)
    assert one.fell("b", [P], 1.0) == []
    one.fell("y", others, 1.1)
    assert one.fell("c", [P], 1.2) == [P], "but not again"
    one.fell("a2", [Q], 10.0)
    one.fell("z", [], 10.1)
    assert one.fell("b2", [Q], 10.2 + WAVE_S) == [Q], "nor for long"


def test_copies_of_one_request_excuse_each_other_not() -> None:
    one = suspects()
    assert [one.fell(worker, [P], 0.0) for worker in "abcd"] == [[], [P], [], []]


def test_the_end_of_a_process_whose_engine_died_is_not_another_fall() -> None:
    one = suspects()
    one.fell("a", [P], 0.0)
    one.fell("a", [], 0.1)
    assert one.fell("b", [P], 0.2) == [P]


def test_bounds_in_number_and_time() -> None:
    one = suspects(keep_s=10.0, most=2, max_suspects=3)
    for number in range(5):
        one.fell(f"a{number}", [b"%d" % number], float(number))
    assert [one.is_suspect(b"%d" % number) for number in range(5)] == [False, False, True, True, True]
    for number, now in ((2, 7.0), (3, 9.5), (4, 12.0)):
        assert one.fell(f"b{number}", [b"%d" % number], now) == [b"%d" % number]
    assert [one.quarantine_s(b"%d" % number, 12.0) for number in (2, 3, 4)] == [None, 7.5, 10.0]
    assert (one.quarantined, one.suspected, one.any) == (2, 0, True)
    one.expire(22.0)
    assert not one.any


def test_it_can_be_turned_off() -> None:
    one = suspects(keep_s=0.0)
    assert one.fell("a", [P], 0.0) == one.fell("b", [P], 0.0) == []
    assert not one.any


@pytest.mark.parametrize("seed", range(20))
def test_poison_among_innocents_is_found_and_they_are_not(seed: int) -> None:
    """Simulated: suspects go one to a worker, whoever reaches a worker beside poison becomes suspect, too."""
    chance = random.Random(seed)
    one, names, felled = suspects(), [b"%d" % number for number in range(30)], 0
    poison = chance.choice(names)
    waiting = set(names)
    together = {poison, *chance.sample(names, 12)}
    one.fell("w0", together, 0.0)
    for number in range(1, 200):
        suspect = sorted(name for name in waiting if one.is_suspect(name))
        fresh = sorted(waiting - set(suspect))
        there = {*chance.sample(suspect, min(1, len(suspect))), *chance.sample(fresh, min(2, len(fresh)))}
        if poison in there:
            felled += 1
            waiting -= set(one.fell(f"w{number}", there, float(number)))
        else:
            waiting -= there
            for name in there:
                one.answered(name)
    assert waiting == set(), "all but the poison are answered"
    assert (felled, one.quarantined) == (1, 1)
    assert one.quarantine_s(poison, 200.0)


REQUEST = GenerateRequest(id="r", model="m", token_ids=[1, 2], sampling=Sampling(max_tokens=5, seed=1))
PROMPT = PromptKeys(prompt_keys(REQUEST.token_ids))


def test_names() -> None:
    def other(**sampling: object) -> bytes:
        return name_of(replace(REQUEST, sampling=replace(REQUEST.sampling, **sampling)), PROMPT, "me")

    name = name_of(REQUEST, PROMPT, "me")
    assert len(name) == 32
    same = replace(
        REQUEST, id="another", frontend_id="o", generated_ids=[3], sampling=replace(REQUEST.sampling, seed=2)
    )
    assert name_of(same, PROMPT, "me") == name
    medium = Picture(content_hash="red", format="PNG")
    others = [
        name_of(REQUEST, PROMPT, "you"),
        name_of(REQUEST, PromptKeys(prompt_keys([1, 3])), "me"),
        name_of(replace(REQUEST, model="n"), PROMPT, "me"),
        name_of(replace(REQUEST, media=[medium]), PROMPT, "me"),
        other(max_tokens=6),
        other(guided=Guided("json_schema", "{}")),
    ]
    assert len({name, *others}) == 7


class Call:
    def __init__(self, taken: bool = True) -> None:
        self.taken = taken


def test_what_a_worker_has_taken_and_not_answered() -> None:
    there = Unanswered(lambda: 0.0)
    visits = [
        Visit("a", lambda: P, Call()),
        Visit("a", lambda: Q, Call(taken=False)),
        Visit("b", lambda: R, Call()),
        Visit("a", lambda: S, Call()),
    ]
    for one in visits:
        there.begin(one)
    there.end(visits[3])
    assert there.fell("a") == {P}
    assert there.fell("a") == set(), "a fall is told once"
    assert there.fell("b") == {R}
    for one in visits:
        there.leave(one, given_up=False)
    assert there._at == {}


def test_a_request_whose_client_left_counts_as_unanswered_for_a_while() -> None:
    now = 0.0
    there = Unanswered(lambda: now)

    def leave(worker: str, name: bytes, call: Call, answered: bool = False) -> None:
        visit = Visit(worker, lambda: name, call)
        there.begin(visit)
        if answered:
            there.end(visit)
        there.leave(visit, given_up=True)

    leave("a", P, Call())
    leave("a", Q, Call(taken=False))
    leave("a", R, Call(), answered=True)
    assert there.fell("a") == {P}
    leave("a", P, Call())
    now = LINGER_S + 0.1
    assert there.fell("a") == set()
    leave("b", Q, Call())
    now += LINGER_S + 0.1
    for number in range(MAX_LINGERING + 5):
        leave("a", b"%d" % number, Call())
    assert len(there.fell("a")) == MAX_LINGERING
    leave("c", Q, Call())
    assert list(there._lingering) == ["c"], "the account does not grow with workers that are gone"


async def test_suspects_wait_for_each_other() -> None:
    apart = Apart()
    with apart.at(["a", "b"], P), apart.at(["b", "c"], Q):
        assert apart.workers == {"a", "b", "c"}
        assert apart.is_out(P)
        assert not apart.is_out(R)
        begun = asyncio.get_running_loop().time()
        await apart.somebody_left(0.05)
        assert asyncio.get_running_loop().time() - begun >= 0.04
        waiting = asyncio.create_task(apart.somebody_left(20.0))
        await asyncio.sleep(0)
    await waiting
    assert apart.workers == set()
