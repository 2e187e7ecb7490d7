"""Requests of different ``cache_salt``, in all four modes: none finds what was made for another."""

from __future__ import annotations

import asyncio
import logging

import pytest

from support.checkpoints import image_part, picture_url
from support.deployment import deployment
from support.embeddings import floats, grid, part, safetensors, url_of
from support.loops import until
from triptych.engines.mock.tensors import EMBEDDING_WIDTH
from triptych.frontend.openai.cache_salt import salt_of

MODES = {"EPD": ["epd"], "E/PD": ["e", "pd"], "EP/D": ["ep", "d"], "E/P/D": ["e", "p", "d"]}
PACE = ("--pace", "demo-cpu")
LONG = "once upon a time nobody could tell who else had heard this story before. " * 4
PICTURE = [image_part(picture_url(96, 96, "teal")), {"type": "text", "text": "what is it? " * 8}]
ROUND = ["tenant-a", "tenant-a", "tenant-b", None, "tenant-b", None]


async def cached(d, content, **fields):
    answer = await d.chat(content, max_tokens=4, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"], answer.json()["choices"][0]["message"]


async def by_salt(d, content):
    """[cached tokens] in the order of ROUND; all answers are equal."""
    found = []
    for salt in ROUND:
        fields = {} if salt is None else {"cache_salt": salt}
        found.append(await cached(d, content, **fields))
    assert len({str(message) for _, message in found}) == 1, "a salt changes no answer"
    return [count for count, _ in found]


def known_media(d):
    """Names under which anything of a medium is kept or remembered anywhere."""
    names = set()
    for worker in d.workers:
        names |= set(worker.engine._decoder.cache._entries) | set(worker.worker.endpoints._cache.store._entries)
    for held in d.dispatcher._media_hints._names.values():
        names |= set(held)
    return names


@pytest.mark.parametrize("mode", MODES)
async def test_nothing_is_found_under_another_salt(mode):
    async with deployment(spans=MODES[mode], engine_args=PACE) as d:
        texts, pictures = await by_salt(d, LONG), await by_salt(d, PICTURE)
        encoded = sum(worker.counts["engine_encoded_media_total"] for worker in d.workers)
        names = known_media(d)
    for counts in (texts, pictures):
        # Chat templates begin alike, so a prompt may find its own tenant's first block, and only that.
        first_a, again_a, first_b, first_none, again_b, again_none = counts
        assert again_a >= 64
        assert (again_b, again_none) == (again_a, again_a)
        assert first_a == first_b == first_none < again_a
    assert texts[0] == 0
    assert len(names) == 3, "each tenant's picture has a name of its own, and one at all workers"
    assert encoded == (3 if "e" in MODES[mode] else 0), "each tenant's picture is encoded, once"


@pytest.mark.parametrize("policy", ["kv", "round-robin"])
async def test_a_salted_prompt_comes_back_to_who_holds_it(policy):
    """What workers tell of salted blocks is what the frontend asks for; the same text of another goes anywhere."""

    async def main():
        frontend = {"plan_header": True, "router_policy": policy}
        async with deployment(spans=["epd", "epd"], frontend=frontend, engine_args=PACE) as d:
            where = []
            for number in range(6):
                answer = await d.chat(f"{number} {LONG}", max_tokens=2, cache_salt="tenant-a")
                where.append(answer.headers["x-triptych-plan"])
            levels, tokens = d.dispatcher.routing._levels, answer.json()["usage"]["prompt_tokens"]
            await until(lambda: len(levels[0]) >= 6 * (tokens // 16) - 6, "the frontend was told")
            again = []
            for number in (3, 0, 5, 1, 4, 2):
                count, _ = await cached(d, f"{number} {LONG}", cache_salt="tenant-a")
                again.append(count)
            other = [(await cached(d, f"{number} {LONG}", cache_salt="tenant-b"))[0] for number in range(2)]
            return where, again, other

    where, again, other = await main()
    assert len(set(where)) == 2, "both workers have some"
    assert all(count >= 64 for count in again) is (policy == "kv")
    assert other[0] == 0


async def test_no_log_metric_or_worker_has_the_salt(caplog):
    secret = "a-secret-that-only-its-tenant-knows"
    caplog.set_level(logging.DEBUG)
    async with deployment(engine_args=PACE) as d:
        seen = []
        generate = d.worker.engine.abilities.generating.generate
        d.worker.engine.abilities.generating.generate = lambda request, *rest: (
            seen.append(request),
            generate(request, *rest),
        )[1]
        answers = [
            await d.chat(PICTURE, max_tokens=2, cache_salt=secret),
            await d.chat(max_tokens=0, cache_salt=secret),
            await d.chat(cache_salt=secret * 20),
            await d.complete(LONG, max_tokens=2, cache_salt=secret),
        ]
        metrics = (await d.http.get("/metrics")).text + (await d.http.get("/health")).text
    assert [answer.status_code for answer in answers] == [200, 400, 400, 200]
    assert len(seen) == 2
    assert {request.salt for request in seen} == {salt_of(secret)}
    for text in (caplog.text, metrics, repr(seen), *(answer.text + str(answer.headers) for answer in answers)):
        assert secret not in text
    assert salt_of(secret) not in metrics + caplog.text


async def test_requests_of_two_tenants_at_once_share_no_work():
    async with deployment(spans=["e", "pd"], engine_args=("--encode-ms", "50")) as d:
        content = [image_part(picture_url(64, 64, "navy"))]
        salts = ["a", "a", "b", "b"]
        await asyncio.gather(*(d.chat(content, max_tokens=2, cache_salt=salt) for salt in salts))
        counts = d.workers[0].counts
    assert counts["engine_encoded_media_total"] == 2


@pytest.mark.parametrize("mode", MODES)
async def test_embeddings_that_clients_computed_are_kept_for_each(mode):
    """The mock engine looks whether an embedding is what its name says."""
    file = safetensors(image_embeds=floats(8, EMBEDDING_WIDTH), image_grid_thw=grid(1, 4, 8))
    content = [part("image", url_of(file)), {"type": "text", "text": "what is it?"}]
    async with deployment(spans=MODES[mode], frontend={"enable_mm_embeds": True}) as d:
        answers = [await cached(d, content, cache_salt=salt) for salt in ("tenant-a", "tenant-b", "tenant-a")]
        names = known_media(d)
    assert len({str(message) for _, message in answers}) == 1
    assert len(names) == 2


async def test_a_quarantined_request_is_known_by_its_salt():
    """By content and salt: another tenant is not told what somebody sent."""

    async def main():
        async with deployment(workers=4, frontend={"suspect_wait_s": 0.1}) as d:
            for worker in d.workers:
                generate = worker.engine.abilities.generating.generate
                worker.engine.abilities.generating.generate = lambda request, *rest, g=generate, w=worker: poisoned(
                    w, g, request, *rest
                )
            bad = await d.chat("poison", max_tokens=4, cache_salt="tenant-a")
            again = await d.chat("poison", max_tokens=4, cache_salt="tenant-a")
            return (
                bad.status_code,
                again.status_code,
                (await d.chat("poison", max_tokens=4, cache_salt="b")).status_code,
            )

    async def poisoned(worker, generate, request, *rest):
        if request.salt == salt_of("tenant-a"):
            worker.vanish()
            await asyncio.Event().wait()
        async for delta in generate(request, *rest):
            yield delta

    assert await main() == (422, 422, 200)
