"""Media kept by URL, against a real server on loopback."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from support.media_files import picture
from support.odd_site import ITEM, MAX_BYTES, PICTURE, limits, serving
from triptych.cache.lru import ByteLru
from triptych.contracts.errors import BadRequest, Unavailable
from triptych.contracts.media import Picture
from triptych.media.byte_limit import ByteLimit
from triptych.media.fetch.fetcher import MediaFetcher
from triptych.media.fetch.remote import RemoteMedia
from triptych.media.loader import MediaLoader, MediaReference

OTHER = picture("GIF")
CACHE_BYTES = 1 << 20


class Kept:
    """A RemoteMedia with a clock of its own, and a page ``/kept`` that answers with ``headers`` and ``body``."""

    def __init__(self, site, fetcher, cache_bytes):
        self.now_s = 0.0
        self.made = 0
        self.site = site
        self.headers = {}
        self.body = PICTURE
        self.go = asyncio.Event()
        self.go.set()
        self.remote = RemoteMedia(fetcher, ByteLru(cache_bytes), clock=self._clock)
        site.on_kept = self._answer

    def _clock(self):
        return time.monotonic() + self.now_s

    async def _answer(self, request):
        await self.go.wait()
        if self.headers.get("ETag") and request.headers.get("If-None-Match") == self.headers["ETag"]:
            return web.Response(status=304, headers=self.headers)
        return web.Response(body=self.body, headers=self.headers)

    async def make(self, data, item):
        self.made += 1
        if data == b"bad":
            raise BadRequest(f"{item}: bad", param=item, code="bad")
        return Picture(content_hash="h", format="F", data=data)

    async def get(self, path="/kept", item=ITEM, variant="image"):
        medium = await self.remote.load(self.site.url(path), item, ByteLimit(MAX_BYTES), variant, self.make)
        return medium.data

    @property
    def asked(self):
        return len(self.site.requests)

    @property
    def counts(self):
        counts = self.remote.counts
        return counts.hits, counts.revalidated, counts.misses


@asynccontextmanager
async def keeping(cache_bytes=CACHE_BYTES, **changes):
    """A media host, and what fetches from it and keeps the answers."""
    async with serving() as site, MediaFetcher(limits(**changes)) as fetcher:
        kept = Kept(site, fetcher, cache_bytes)
        try:
            yield kept
        finally:
            kept.go.set()
            await kept.remote.close()


async def test_a_fresh_answer_is_used_again_without_asking_or_inspecting():
    async with keeping() as kept:
        kept.headers = {"Cache-Control": "max-age=60"}
        for path in ("/kept", "/kept#part", "/kept#other"):
            assert await kept.get(path) == PICTURE
        assert (kept.asked, kept.made, kept.counts) == (1, 1, (2, 0, 1))
        assert len(PICTURE) < kept.remote.size_bytes < len(PICTURE) + 4096
        kept.now_s = 61
        kept.body = OTHER
        assert await kept.get() == OTHER
        assert (kept.asked, kept.made, kept.counts) == (2, 2, (2, 0, 2))


async def test_other_urls_and_variants_are_others():
    async with keeping() as kept:
        kept.headers = {"Cache-Control": "max-age=60"}
        for path, variant in (("/kept", "image"), ("/kept?a", "image"), ("/kept", "audio"), ("/kept?", "image")):
            assert await kept.get(path, variant=variant) == PICTURE
        assert kept.asked == 4


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Cache-Control": "no-store, max-age=60", "ETag": '"a"'},
        {"Cache-Control": "private, max-age=60", "ETag": '"a"'},
        {"Cache-Control": "max-age=60", "Vary": "*", "ETag": '"a"'},
        {"Cache-Control": "max-age=60", "Age": "60"},
        {"Cache-Control": "no-cache"},
    ],
    ids=str,
)
async def test_an_answer_that_may_not_be_used_again_is_not_kept(headers):
    async with keeping() as kept:
        kept.headers = headers
        for _ in range(2):
            assert await kept.get() == PICTURE
        assert (kept.asked, kept.remote.size_bytes) == (2, 0)
        assert all("If-None-Match" not in one.headers for one in kept.site.requests)


async def test_a_stale_answer_is_asked_about_and_freshened():
    async with keeping() as kept:
        kept.headers = {"ETag": '"a"', "Last-Modified": "Mon, 01 Jan 2001 00:00:00 GMT", "Cache-Control": "no-cache"}
        for _ in range(2):
            assert await kept.get() == PICTURE
        assert (kept.asked, kept.made, kept.counts) == (2, 1, (0, 1, 1))
        asked = kept.site.requests[1].headers
        assert asked["If-None-Match"] == '"a"'
        assert asked["If-Modified-Since"] == "Mon, 01 Jan 2001 00:00:00 GMT"
        kept.headers = {"ETag": '"a"', "Cache-Control": "max-age=60"}
        for _ in range(2):
            assert await kept.get() == PICTURE
        assert (kept.asked, kept.counts) == (3, (1, 2, 1)), "a 304 can make it fresh"
        kept.now_s = 61
        kept.headers, kept.body = {"ETag": '"b"'}, OTHER
        assert await kept.get() == OTHER
        assert kept.counts == (1, 2, 2)
        kept.headers = {"ETag": '"b"', "Cache-Control": "no-store"}
        await kept.get()
        assert kept.remote.size_bytes == 0, "a 304 can forbid to keep it"


async def test_a_304_about_another_answer_is_not_believed():
    async with keeping() as kept:
        kept.headers = {"ETag": '"a"'}
        await kept.get()

        async def confused(request):
            if "If-None-Match" in request.headers:
                return web.Response(status=304, headers={"ETag": '"b"'})
            return web.Response(body=OTHER)

        kept.site.on_kept = confused
        assert await kept.get() == OTHER
        assert kept.asked == 3


async def test_a_redirects_own_lifetime_counts():
    async with keeping() as kept:
        kept.headers = {"Cache-Control": "max-age=60", "ETag": '"a"'}
        for _ in range(2):
            assert await kept.get("/to?url=/kept") == PICTURE
        assert [one.path for one in kept.site.requests] == ["/to", "/kept", "/to", "/kept"]
        assert "If-None-Match" not in kept.site.requests[2].headers, "the validator is the other page's"
        assert kept.counts == (0, 1, 1)

        async def lasting(request):
            return web.Response(status=301, headers={"Location": "/kept", "Cache-Control": "max-age=30"})

        kept.site.on_to = lasting
        for _ in range(2):
            await kept.get("/to?url=/kept")
        assert (kept.asked, kept.counts) == (6, (1, 2, 1))
        kept.now_s = 31
        await kept.get("/to?url=/kept")
        assert kept.asked == 8, "the redirect's 30 s are over, though the picture's 60 are not"


async def test_the_cache_is_bounded_in_bytes_and_can_be_off():
    async def fill(kept, number):
        kept.headers = {"Cache-Control": "max-age=60"}
        kept.body = bytes(10_000)
        for at in range(number):
            await kept.get(f"/kept?{at}")

    async with keeping(cache_bytes=40_000) as kept:
        await fill(kept, 5)
        assert kept.remote.size_bytes <= 40_000
        await kept.get("/kept?4")
        assert kept.asked == 5
        await kept.get("/kept?0")
        assert kept.asked == 6, "the oldest went"

    async with keeping(cache_bytes=0) as kept:
        await fill(kept, 2)
        await kept.get("/kept?1")
        assert (kept.asked, kept.remote.size_bytes) == (3, 0)


async def flying(kept, count=3):
    """Callers of one URL, of whom the first one's request is at the host, which does not answer yet."""
    kept.go.clear()
    tasks = [asyncio.create_task(kept.get(item=f"[{at}]")) for at in range(count)]
    await kept.site.asked.wait()
    return tasks


@pytest.mark.parametrize("cache_bytes", [0, CACHE_BYTES])
async def test_simultaneous_requests_share_a_fetch_and_cancelling_one_touches_no_other(cache_bytes):
    async with keeping(cache_bytes) as kept:
        tasks = await flying(kept)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert tasks[0].cancelled()
        kept.go.set()
        assert await asyncio.gather(*tasks[1:]) == [PICTURE] * 2
        assert (kept.asked, kept.made) == (1, 1)


async def test_when_all_have_left_the_fetch_ends():
    async with keeping(media_max_fetches=1) as kept:
        tasks = await flying(kept)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        kept.go.set()
        assert await kept.get() == PICTURE
        assert kept.asked == 2


async def test_an_error_names_each_ones_own_field_and_is_not_kept():
    async with keeping() as kept:
        kept.headers, kept.body = {"Cache-Control": "max-age=60"}, b"bad"
        tasks = await flying(kept)
        kept.go.set()
        await asyncio.wait(tasks)
        for at, task in enumerate(tasks):
            error = task.exception()
            assert (error.message, error.param, error.code) == (f"[{at}]: bad", f"[{at}]", "bad")
        assert len({id(task.exception()) for task in tasks}) == 3
        assert kept.asked == 1
        kept.body = PICTURE
        assert await kept.get() == PICTURE


async def test_an_answer_for_one_use_is_fetched_by_each():
    async with keeping() as kept:
        kept.headers = {"Cache-Control": "no-store"}
        tasks = await flying(kept)
        kept.go.set()
        assert await asyncio.gather(*tasks) == [PICTURE] * 3
        assert (kept.asked, kept.counts) == (3, (0, 0, 3))


async def test_close_ends_those_who_wait():
    async with keeping() as kept:
        tasks = await flying(kept)
        await kept.remote.close()
        await kept.remote.close()
        await asyncio.wait(tasks)
        for task in tasks:
            assert isinstance(task.exception(), Unavailable)
            assert task.exception().param is None
        assert kept.remote.size_bytes == 0


async def test_the_loader_keeps_media_with_their_facts_by_kind_and_settings():
    async with serving() as site, MediaLoader(limits(), cache_bytes=CACHE_BYTES) as loader:

        async def page(request):
            return web.Response(body=PICTURE, headers={"Cache-Control": "max-age=60"})

        site.on_kept = page
        reference = MediaReference("image", site.url("/kept"), ITEM)
        first = await loader.load([reference])
        again = await loader.load([reference._replace(item="[1]")])
        assert again[0] is first[0]
        assert (first[0].format, first[0].width, first[0].height) == ("PNG", 16, 8)
        await loader.load_one(reference._replace(settings=(("width", 5),)))
        assert len(site.requests) == 2
