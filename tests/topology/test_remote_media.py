"""Media by URL, through the whole path: what is fetched, and how each failure reads."""

from __future__ import annotations

import asyncio

from support.checkpoints import image_part
from support.deployment import deployment
from support.errors import check_error
from support.loops import until_async
from support.media_site import media_site
from triptych.config.media import MediaLimits

LIMITS = MediaLimits(media_allow_private=True, media_max_bytes=100_000)
HURRIED = MediaLimits(media_allow_private=True, media_total_timeout_s=0.4)


def ask(url):
    return [image_part(url), {"type": "text", "text": "what?"}]


async def test_a_picture_by_url_and_by_redirect():
    async with media_site() as site, deployment(limits=LIMITS) as d:
        direct = (await d.chat(ask(f"{site}/good.png"))).json()
        assert direct["choices"][0]["message"]["content"] == "user\nwhat?\nassistant\n"
        redirected = (await d.chat(ask(f"{site}/hop/3"))).json()
        assert redirected["usage"] == direct["usage"]


async def test_each_failure_of_a_url_is_told():
    cases = {
        "/gone": (400, "HTTP 404"),
        "/broken": (400, "HTTP 500"),
        "/loop": (400, "loop"),
        "/hop/9": (400, "redirects more than 4 times"),
        "/page": (415, "HTML"),
        "/large": (413, "100,000 bytes"),
        "/file": (400, "http"),
    }
    async with media_site() as site, deployment(limits=LIMITS) as d:
        answers = await asyncio.gather(*(d.chat(ask(site + path)) for path in cases))
        for (path, (status, words)), answer in zip(cases.items(), answers, strict=True):
            error = check_error(answer, status)
            assert words in error["message"], (path, error)
            assert error["param"] == "messages[0].content[0].image_url", path
            assert "secret" not in answer.text, "what the other host said is not passed on"


async def test_a_host_that_never_answers_is_given_up():
    async with media_site() as site, deployment(limits=HURRIED) as d:
        assert "longer than 0.4 s" in check_error(await d.chat(ask(f"{site}/hang")), 400)["message"]


async def test_a_private_address_is_refused_also_behind_a_redirect():
    async with media_site() as site, deployment() as d:
        error = check_error(await d.chat(ask(f"{site}/good.png")), 400)
        assert error["code"] == "media_address_refused"
    allowed = MediaLimits(media_allow_private=True, media_connect_timeout_s=0.2)
    async with media_site() as site, deployment(limits=allowed) as d:
        check_error(await d.chat(ask(f"{site}/far")), 400)


async def test_a_client_that_leaves_while_its_media_are_fetched():
    slow = MediaLimits(media_allow_private=True, media_total_timeout_s=600)
    async with media_site() as site, deployment(limits=slow) as d:
        hanging = asyncio.create_task(d.chat(ask(f"{site}/hang")))

        async def fetching():
            return (await d.http.get("/health")).json()["requests_in_flight"] == 1

        await until_async(fetching, "the request is being answered")
        hanging.cancel()
        await asyncio.wait([hanging])

        async def over():
            return (await d.http.get("/health")).json()["requests_in_flight"] == 0

        await until_async(over, "the request has ended with its client")
        assert d.worker.engine.stats().generated_tokens == 0
