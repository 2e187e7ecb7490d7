"""Which instances an administrative request is for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from support.instances import instance
from triptych.contracts.admin import Action
from triptych.contracts.errors import AbilityMissing, BadRequest, NotFound
from triptych.frontend.admin import targets
from triptych.frontend.admin.request import Target
from triptych.frontend.admin.targets import targets_of


class Nothing(msgspec.Struct, frozen=True):
    pass


ACTION = Action("sleep", "Sleep", "sleeping", Nothing, Nothing)
ABLE, OTHER, LACKING = (
    instance(f"{name}.1", name=name, abilities=abilities)
    for name, abilities in (("a", ("sleeping",)), ("b", ("generating", "sleeping")), ("c", ("generating",)))
)


def chosen(*names: str, among: tuple[Any, ...] = (ABLE, OTHER, LACKING), **fields: Any) -> list[Any]:
    return targets_of(ACTION, Target(model="m", instances=names, **fields), among)


def test_all_that_have_the_ability_are_meant_if_none_is_named() -> None:
    assert chosen() == [ABLE, OTHER]


def test_they_are_named_by_name_or_id_and_told_once() -> None:
    assert chosen("b", "a.1", "b.1") == [OTHER, ABLE]


def test_a_name_that_nobody_has_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(NotFound, match=r"called 'z'; alive: a, b, c") as raised:
        chosen("a", "z")
    assert raised.value.param == "instances[1]"


def test_a_named_one_that_cannot_do_it_is_refused_before_any_is_told() -> None:
    with pytest.raises(AbilityMissing, match="c cannot do this") as raised:
        chosen("a", "c")
    assert raised.value.param == "instances"


def test_a_model_without_any_that_can_do_it_is_refused() -> None:
    with pytest.raises(AbilityMissing, match="engine vllm") as raised:
        chosen(among=(msgspec.structs.replace(LACKING, engine="vllm"),))
    assert raised.value.param == "model"


def test_errors_name_a_few_of_many_workers() -> None:
    many = tuple(instance(f"w{number:02}") for number in range(targets.MAX_NAMED + 5))
    with pytest.raises(AbilityMissing, match=r"w19 and 5 more cannot"):
        chosen(among=many)


def test_all_or_nothing_needs_an_action_that_takes_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRequest, match="nothing takes sleep back") as raised:
        chosen(all_or_nothing=True)
    assert raised.value.code == "cannot_be_undone"
    undo = Action("wake", "Wake", "sleeping", Nothing, Nothing)
    monkeypatch.setitem(targets.ACTIONS, "wake", undo)
    sleep = Action("sleep", "Sleep", "sleeping", Nothing, Nothing, undo="wake")
    assert targets_of(sleep, Target(model="m", all_or_nothing=True), [ABLE]) == [ABLE]
