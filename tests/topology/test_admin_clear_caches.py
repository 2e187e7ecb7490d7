"""``POST /admin/clear-caches`` over mock workers: what is cleared, who is told, and what follows from it."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from support.checkpoints import picture_url
from support.deployment import deployment
from support.errors import check_error
from support.loops import until
from triptych.contracts.admin import CLEAR_CACHES
from triptych.engines.mock.engine import MockEngine
from triptych.frontend.admin.routes import MAX_AT_ONCE

KEY = "operators-only"
PATH = "/admin/clear-caches"
PACE = ("--pace", "demo-cpu")
LONG = "once upon a time there was a cache that was cleared while nobody looked. " * 10
PICTURE = [
    {"type": "image_url", "image_url": {"url": picture_url(64, 64, "red")}},
    {"type": "text", "text": "what is it?"},
]


def clear(d, key=KEY, **fields):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return d.http.post(PATH, json={"model": "demo", **fields}, headers=headers)


def with_key(**frontend):
    return {"admin_key": KEY, **frontend}


def by_name(answer):
    return {one["name"]: one for one in answer.json()["instances"]}


async def cached_tokens(d):
    usage = (await d.chat(LONG, max_tokens=2)).json()["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"]


async def test_it_is_off_without_an_admin_key():
    async with deployment(frontend={"api_key": "clients"}) as d:
        error = check_error(await clear(d, key="clients"), 403)
        assert error["code"] == "admin_off"
        assert "TRIPTYCH_ADMIN_KEY" in error["message"]


@pytest.mark.parametrize("key", ["clients", "", "operators"])
async def test_other_keys_than_the_admins_are_refused(key):
    async with deployment(frontend=with_key(api_key="clients")) as d:
        answer = await clear(d, key=key)
        assert check_error(answer, 401)["code"] == "invalid_admin_key"
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_admin_key_is_no_api_key():
    async with deployment(frontend=with_key(api_key="clients")) as d:
        answer = await d.http.get("/v1/models", headers={"authorization": f"Bearer {KEY}"})
        check_error(answer, 401)


async def test_a_prefix_cache_is_cleared_and_the_router_follows():
    async with deployment(engine_args=PACE, frontend=with_key()) as d:
        await cached_tokens(d)
        assert await cached_tokens(d) > 0
        levels = d.dispatcher.routing._levels
        await until(lambda: len(levels[0]) > 0, "the frontend knows what the worker holds")
        await d.worker.idle()
        answer = await clear(d, caches=["prefix"])
        assert answer.status_code == 200, answer.text
        [told] = answer.json()["instances"]
        assert (told["name"], told["status"]) == (d.worker.instance.name, "done")
        assert told["result"] == {"cleared": ["prefix"], "missing": []}
        await until(lambda: len(levels[0]) == 0, "the frontend knows that the worker holds nothing")
        assert await cached_tokens(d) == 0


async def test_all_instances_are_told_each_of_the_caches_that_it_has():
    async with deployment(spans=["e", "pd"], engine_args=PACE, frontend=with_key()) as d:
        told = by_name(await clear(d))
        assert told["e-0"]["result"] == {"cleared": ["media", "embeddings"], "missing": []}
        assert told["pd-1"]["result"] == {"cleared": ["prefix", "media", "embeddings"], "missing": []}
        told = by_name(await clear(d, caches=["prefix"]))
        assert told["e-0"]["result"] == {"cleared": [], "missing": ["prefix"]}
        assert list(by_name(await clear(d, instances=["pd-1"]))) == ["pd-1"]
        assert list(by_name(await clear(d, instances=[d.workers[0].instance.id, "e-0"]))) == ["e-0"]


@pytest.mark.parametrize("spans", [["e", "pd"], ["e", "p", "d"], ["epd"]])
async def test_embeddings_that_were_cleared_are_asked_for_again(spans):
    """The frontend still thinks that workers hold them; they say that they do not, and the answer is as before."""
    async with deployment(spans=spans, frontend=with_key()) as d:
        before = (await d.chat(PICTURE)).json()["choices"]
        await d.chat(PICTURE)
        encoded = sum(one.engine.stats().encoded for one in d.workers)
        for one in d.workers:
            await one.idle()
        assert (await clear(d, caches=["embeddings", "media"])).status_code == 200
        assert not any(one.worker.cache.store.size_bytes for one in d.workers)
        assert (await d.chat(PICTURE)).json()["choices"] == before
        again = sum(one.engine.stats().encoded for one in d.workers)
        assert again == encoded + ("e" in spans), "it is encoded again, and once"


async def test_requests_that_run_keep_what_they_need():
    async with deployment(engine_args=PACE, frontend=with_key()) as d:
        running = asyncio.create_task(d.chat("x", max_tokens=3000, ignore_eos=True))
        await d.worker.busy()
        answer = await clear(d, caches=["prefix"])
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "requests_running")
        assert answer.headers["retry-after"]
        [told] = answer.json()["instances"]
        assert (told["name"], told["status"]) == (d.worker.instance.name, "failed")
        assert told["error"]["code"] == "requests_running"
        assert not running.done()
        assert (await clear(d, caches=["embeddings"])).status_code == 200, "which no request needs any more"
        running.cancel()


async def test_it_can_wait_for_requests_to_end_while_new_ones_are_held_back():
    async with deployment(engine_args=("--itl-ms", "5"), frontend=with_key()) as d:
        first = asyncio.create_task(d.chat("x", max_tokens=60, ignore_eos=True))
        await d.worker.busy()
        clearing = asyncio.create_task(clear(d, wait_s=20))
        load = d.worker.engine._load
        await until(lambda: not load._opened.is_set(), "the worker holds requests back")
        second = asyncio.create_task(d.chat("y", max_tokens=1))
        assert (await clearing).status_code == 200
        assert first.done() or load.running == 0
        assert [(await one).status_code for one in (first, second)] == [200, 200]


async def test_a_client_that_leaves_does_not_stop_it():
    async with deployment(engine_args=PACE, frontend=with_key()) as d:
        await cached_tokens(d)
        levels = d.dispatcher.routing._levels
        await until(lambda: len(levels[0]) > 0, "the frontend knows what the worker holds")
        running = asyncio.create_task(d.chat("x", max_tokens=3000, ignore_eos=True))
        await d.worker.busy()
        waiting = asyncio.create_task(clear(d, caches=["prefix"], wait_s=20))
        load = d.worker.engine._load
        await until(lambda: not load._opened.is_set(), "the worker holds requests back")
        waiting.cancel()
        await asyncio.wait([waiting])
        running.cancel()
        await until(lambda: len(levels[0]) == 0, "the cache is cleared")


async def test_a_worker_that_is_gone_is_named_and_the_others_are_cleared():
    async with deployment(workers=3, frontend=with_key()) as d:
        gone = d.workers[1]
        gone.vanish()
        answer = await clear(d, caches=["embeddings"])
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["type"] == "service_unavailable"
        assert gone.instance.name in error["message"]
        assert "1 of 3" in error["message"]
        told = by_name(answer)
        assert {name for name, one in told.items() if one["status"] == "failed"} == {gone.instance.name}
        assert {one["status"] for one in told.values()} == {"failed", "done"}


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "no"}, 404, "model", "model_not_found"),
        ({"instances": ["e-9"]}, 404, "instances[0]", "instance_not_found"),
        ({"caches": ["prefixes"]}, 400, "caches[0]", "invalid_type"),
        ({"caches": "prefix"}, 400, "caches", "invalid_type"),
        ({"wait_s": 61}, 400, "wait_s", "invalid_type"),
        ({"wait_s": -1}, 400, "wait_s", "invalid_type"),
        ({"cachs": ["prefix"]}, 400, "cachs", "unknown_parameter"),
        ({"a`b": 1}, 400, "a`b", "unknown_parameter"),
        ({"all_or_nothing": True}, 400, "all_or_nothing", "cannot_be_undone"),
        ({"instances": ["x"] * 1025}, 400, "instances", "invalid_type"),
        ({"model": 5}, 400, "model", "invalid_type"),
    ],
)
async def test_wrong_requests_are_refused_by_name(fields, status, param, code):
    async with deployment(frontend=with_key()) as d:
        error = check_error(await clear(d, **fields), status)
        assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'{"model": "demo"}', {"content-type": "text/plain"}, 415),
        (b'{"model": "' + b"x" * 70_000 + b'"}', {}, 413),
    ],
)
async def test_wrong_bodies_are_refused(body, headers, status):
    async with deployment(frontend=with_key()) as d:
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **headers}
        error = check_error(await d.http.post(PATH, content=body, headers=headers), status)
        assert "--max-body-bytes" not in error["message"], "no setting changes the limit of these routes"


async def test_what_no_worker_can_do_is_501_without_asking_one(monkeypatch):
    start = MockEngine.start

    async def without_caches(engine, transfer):
        card = await start(engine, transfer)
        engine.abilities = dataclasses.replace(engine.abilities, cache_control=None)
        return card

    monkeypatch.setattr(MockEngine, "start", without_caches)
    async with deployment(frontend=with_key(), embedding_cache_bytes=0) as d:
        [instance] = (await d.http.get("/health")).json()["models"]["demo"]["instances"]
        assert instance["abilities"] == ["prefilling", "generating"]
        assert CLEAR_CACHES.name not in d.worker.server.standing
        for fields, param in (({}, "model"), ({"instances": [instance["name"]]}, "instances")):
            error = check_error(await clear(d, **fields), 501)
            assert (error["code"], error["param"]) == ("ability_missing", param)
            assert instance["name"] in error["message"]


async def test_too_many_at_once_are_refused():
    async with deployment(engine_args=PACE, frontend=with_key()) as d:
        running = asyncio.create_task(d.chat("x", max_tokens=3000, ignore_eos=True))
        await d.worker.busy()
        waiting = [asyncio.create_task(clear(d, caches=["prefix"], wait_s=20)) for _ in range(MAX_AT_ONCE + 1)]
        (refused,), waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert check_error(refused.result(), 429)["code"] == "too_many_requests"
        running.cancel()
        assert {(await one).status_code for one in waiting} == {200}
