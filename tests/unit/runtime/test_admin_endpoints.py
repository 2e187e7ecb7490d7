"""The worker's endpoints for administrative actions follow from its abilities."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

import msgspec
import pytest

from triptych.cache.embedding import EmbeddingCache
from triptych.contracts.admin import ACTIONS, CLEAR_CACHES, CachesCleared, ClearCaches
from triptych.contracts.errors import BadRequest, Unavailable
from triptych.engines.abilities import Abilities
from triptych.runtime.admin import admin_handlers
from triptych.runtime.caches import WorkerCaches


class Control:
    """Caches of an engine."""

    caches = ("prefix", "media")

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.cleared = error, []  # type: ignore[var-annotated]

    async def clear(self, caches: Collection[str], wait_s: float) -> None:
        if self.error is not None:
            raise self.error
        self.cleared.append((tuple(caches), wait_s))


class Held:
    """An embedding that is kept."""

    data = b"1234"

    def close(self) -> None:
        pass


def cache_with_one() -> EmbeddingCache:
    cache = EmbeddingCache(64)
    cache.store.put("a", Held(), 4)  # type: ignore[arg-type]
    return cache


async def call(abilities: Abilities, params: msgspec.Struct) -> Any:
    [answer] = [one async for one in admin_handlers(abilities)[CLEAR_CACHES.name](msgspec.msgpack.encode(params))]
    return msgspec.msgpack.decode(answer, type=CachesCleared)


def test_every_action_has_its_ability_its_endpoint_and_parameters_that_may_be_left_out() -> None:
    everything: Any = Abilities(**{field.name: Control() for field in fields(Abilities)})
    assert set(admin_handlers(everything)) == set(ACTIONS)
    assert admin_handlers(Abilities()) == {}
    for action in ACTIONS.values():
        without: Any = replace(everything, **{action.ability: None})
        assert action.name not in admin_handlers(without)
        assert action.limit_s(action.params()) > 0
        assert action.undo in ("", *ACTIONS)


@pytest.mark.parametrize(
    ("named", "cleared", "missing"),
    [
        ((), ("prefix", "media", "embeddings"), ()),
        (("embeddings", "prefix"), ("prefix", "embeddings"), ()),
        (("media", "media"), ("media",), ()),
    ],
)
async def test_what_was_named_is_cleared(named: Any, cleared: Any, missing: Any) -> None:
    control, cache = Control(), cache_with_one()
    abilities = Abilities(cache_control=WorkerCaches(control, cache))
    assert await call(abilities, ClearCaches(caches=named, wait_s=3)) == CachesCleared(cleared=cleared, missing=missing)
    assert control.cleared == [(tuple(one for one in cleared if one != "embeddings"), 3)]
    assert bool(cache.store) is ("embeddings" not in cleared)


async def test_what_a_worker_lacks_is_told_and_nothing_else_is_touched() -> None:
    cache = cache_with_one()
    abilities = Abilities(cache_control=WorkerCaches(None, cache))
    assert await call(abilities, ClearCaches(caches=("prefix",))) == CachesCleared(cleared=(), missing=("prefix",))
    assert len(cache.store) == 1


async def test_an_engine_that_refuses_leaves_all_as_it_was() -> None:
    cache = cache_with_one()
    abilities = Abilities(cache_control=WorkerCaches(Control(Unavailable("busy")), cache))
    with pytest.raises(Unavailable, match="busy"):
        await call(abilities, ClearCaches())
    assert len(cache.store) == 1


async def test_parameters_of_another_version_are_refused() -> None:
    handler = admin_handlers(Abilities(cache_control=WorkerCaches(Control(), EmbeddingCache(0))))[CLEAR_CACHES.name]
    for junk in (b"\xc1", msgspec.msgpack.encode({"caches": ["other"]})):
        with pytest.raises(BadRequest, match="version"):
            await anext(handler(junk))
