"""An action told to many instances: every outcome is told, and what can be taken back is."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from support.instances import instance
from triptych.contracts.admin import Action
from triptych.contracts.errors import Unavailable, WorkerUnreached
from triptych.frontend.admin import fan_out
from triptych.frontend.admin.fan_out import FanOut


class Setting(msgspec.Struct, frozen=True):
    value: int = 0


class Set(msgspec.Struct, frozen=True):
    value: int


ACTION = Action("set", "Set it", "toy", Setting, Set, limit_s=lambda params: 0.2, undo="unset")
UNDO = Action("unset", "Take it back", "toy", Setting, Set, limit_s=lambda params: 0.2)
GONE = WorkerUnreached("no connection")


class Workers:
    """A request client whose workers answer as told, by name: with a value, an error, or not at all."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []
        self.at_once = self.max_at_once = 0

    def call(self, peer: Any, endpoint: str, payload: bytes, *, silence_s: float) -> Any:
        self.asked.append((peer.id, endpoint))
        return _Call(self, self.answers.get(f"{peer.id}_{endpoint}", self.answers.get(peer.id, 1)))


class _Call:
    def __init__(self, workers: Workers, answer: Any) -> None:
        self._workers, self._answer = workers, answer

    async def __aenter__(self) -> _Call:
        self._workers.at_once += 1
        self._workers.max_at_once = max(self._workers.max_at_once, self._workers.at_once)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._workers.at_once -= 1

    async def __aiter__(self) -> Any:
        await asyncio.sleep(0)
        if isinstance(self._answer, Exception):
            raise self._answer
        if self._answer is None:
            await asyncio.Event().wait()
        if self._answer == "nothing":
            return
        junk = self._answer == "junk"
        yield [b"\xc1" if junk else msgspec.msgpack.encode(Set(self._answer))]


def named(*names: str) -> list[Any]:
    return [instance(name) for name in names]


async def told(workers: Workers, *names: str) -> list[Any]:
    return await FanOut(workers).run(ACTION, Setting(1), named(*names))  # type: ignore[arg-type]


async def test_each_instance_gets_its_own_outcome_in_order() -> None:
    workers = Workers(a=5, b=GONE, c=7)
    outcomes = await told(workers, "a", "b", "c")
    assert [one.instance.name for one in outcomes] == ["a", "b", "c"]
    assert [one.status for one in outcomes] == ["done", "failed", "done"]
    assert [one.result for one in outcomes] == [Set(5), None, Set(7)]
    assert outcomes[1].error is GONE


@pytest.mark.parametrize(
    ("answer", "code"), [(None, "worker_silent"), ("nothing", "worker_lost"), ("junk", None)], ids=str
)
async def test_a_worker_that_says_nothing_of_use_fails_in_time(answer: Any, code: str | None) -> None:
    failed, done = await told(Workers(a=answer), "a", "b")
    assert (failed.status, failed.error.code, done.status) == ("failed", code, "done")


async def test_no_more_are_called_at_once_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "MAX_AT_ONCE", 3)
    workers = Workers()
    assert len(await told(workers, *"abcdefghij")) == 10
    assert workers.max_at_once == 3


async def test_it_is_taken_back_wherever_it_was_done() -> None:
    workers = Workers(a=5, b=GONE)
    outcomes = await told(workers, "a", "b")
    undone = await FanOut(workers).undo(UNDO, Setting(1), outcomes)  # type: ignore[arg-type]
    assert [one.status for one in undone] == ["undone", "failed"]
    assert undone[1].error is GONE
    assert workers.asked[2:] == [("a", "unset"), ("b", "unset")], "who failed may have done it all the same"


async def test_what_cannot_be_taken_back_is_told() -> None:
    error = Unavailable("not now")
    workers = Workers(a=5, b=GONE, a_unset=error)
    undone = await FanOut(workers).undo(UNDO, Setting(1), await told(workers, "a", "b"))  # type: ignore[arg-type]
    assert (undone[0].status, undone[0].error) == ("undo_failed", error)
