"""An action that all workers do or none: it is undone wherever it was done, over the real frontend and workers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from support.deployment import deployment
from triptych.contracts.admin import ACTIONS, Action
from triptych.contracts.errors import Unavailable
from triptych.engines.abilities import Abilities
from triptych.runtime import endpoints
from triptych.runtime.admin import admin_handlers

KEY = "operators"


class Level(msgspec.Struct, frozen=True, kw_only=True):
    level: int = 1


class Was(msgspec.Struct, frozen=True, kw_only=True):
    was: int


class Lever:
    """What each worker is set to; workers are told apart by their abilities."""

    def __init__(self) -> None:
        self.levels: dict[int, int] = {}
        self.stuck: set[tuple[int, str]] = set()
        """(place of a worker in the order of starts, action) that fails."""

    def of(self, abilities: Abilities) -> dict[str, Any]:
        place = len(self.levels)
        self.levels[place] = 0

        def handler(name: str, up: bool) -> Any:
            async def handle(payload: Any) -> AsyncGenerator[bytes, None]:
                level = msgspec.msgpack.decode(payload, type=Level).level
                if (place, name) in self.stuck:
                    raise Unavailable(f"the lever of {place} is stuck", code="stuck")
                was, self.levels[place] = self.levels[place], level if up else 0
                yield msgspec.msgpack.encode(Was(was=was))

            return handle

        handlers = {name: handler(name, up) for name, up in (("pull_lever", True), ("push_lever", False))}
        return {**admin_handlers(abilities), **handlers}


@pytest.fixture
def lever(monkeypatch: pytest.MonkeyPatch) -> Lever:
    pull = Action("pull_lever", "Pull", "generating", Level, Was, undo="push_lever")
    push = Action("push_lever", "Push", "generating", Level, Was)
    for action in (pull, push):
        monkeypatch.setitem(ACTIONS, action.name, action)
    lever = Lever()
    monkeypatch.setattr(endpoints, "admin_handlers", lever.of)
    return lever


async def pull(d: Any, **fields: Any) -> tuple[int, dict[str, str], Any]:
    """(status, status of each worker by its place, the whole answer)."""
    answer = await d.http.post(
        "/admin/pull-lever", json={"model": "demo", "level": 7, **fields}, headers={"authorization": f"Bearer {KEY}"}
    )
    ids = {one.instance.id: str(place) for place, one in enumerate(d.workers)}
    body = answer.json()
    return answer.status_code, {ids[one["id"]]: one["status"] for one in body["instances"]}, body


def deployed() -> Any:
    return deployment(workers=3, frontend={"admin_key": KEY})


async def test_all_do_it(lever: Lever) -> None:
    async with deployed() as d:
        status, statuses, body = await pull(d, all_or_nothing=True)
        assert (status, set(statuses.values())) == (200, {"done"})
        assert [one["result"] for one in body["instances"]] == [{"was": 0}] * 3
        assert lever.levels == {0: 7, 1: 7, 2: 7}


async def test_one_that_fails_has_it_undone_at_the_others(lever: Lever) -> None:
    async with deployed() as d:
        lever.stuck.add((1, "pull_lever"))
        status, statuses, body = await pull(d, all_or_nothing=True)
        assert (status, statuses) == (503, {"0": "undone", "1": "failed", "2": "undone"})
        assert lever.levels == {0: 0, 1: 0, 2: 0}
        assert body["error"]["code"] == "stuck"
        assert "1 of 3" in body["error"]["message"]


async def test_without_that_wish_the_others_keep_it(lever: Lever) -> None:
    async with deployed() as d:
        lever.stuck.add((1, "pull_lever"))
        status, statuses, _ = await pull(d)
        assert (status, statuses) == (503, {"0": "done", "1": "failed", "2": "done"})
        assert lever.levels == {0: 7, 1: 0, 2: 7}


async def test_one_that_cannot_be_undone_is_named(lever: Lever) -> None:
    async with deployed() as d:
        lever.stuck |= {(1, "pull_lever"), (2, "push_lever")}
        status, statuses, body = await pull(d, all_or_nothing=True)
        assert (status, statuses) == (503, {"0": "undone", "1": "failed", "2": "undo_failed"})
        assert lever.levels == {0: 0, 1: 0, 2: 7}
        assert d.workers[2].instance.name in body["error"]["message"]


async def test_a_worker_that_vanishes_has_it_undone_at_the_others(lever: Lever) -> None:
    async with deployed() as d:
        d.workers[0].vanish()
        status, statuses, _ = await pull(d, all_or_nothing=True)
        assert (status, statuses) == (503, {"0": "failed", "1": "undone", "2": "undone"})
        assert lever.levels == {0: 0, 1: 0, 2: 0}
