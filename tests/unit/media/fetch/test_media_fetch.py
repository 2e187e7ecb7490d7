"""The guarded GET against a real server on loopback."""

import asyncio
import socket

import pytest

from support.odd_site import ITEM, MAX_BYTES, PICTURE, FakeResolver, fetching, get, limits, refusal, serving
from triptych._version import __version__
from triptych.contracts.errors import PayloadTooLarge, TooManyRequests, Unavailable
from triptych.media.fetch.domains import Domains
from triptych.media.fetch.fetcher import MediaFetcher
from triptych.media.fetch.slots import Allowance


async def test_the_bytes_whatever_the_stated_type_and_what_the_host_sees():
    async with fetching() as (site, fetcher):
        for _ in range(2):
            assert await get(fetcher, site.url("/picture?a=1%2F2")) == PICTURE
        headers = site.requests[1].headers
        assert headers["User-Agent"] == f"triptych/{__version__}"
        assert headers["Accept-Encoding"] == "identity"
        assert not {"Cookie", "Authorization", "Referer"} & set(headers)


@pytest.mark.parametrize("code", [404, 500, 204, 206, 304, 302])
async def test_other_answers_than_200(code):
    async with fetching() as (site, fetcher):
        error = await refusal(fetcher, site.url(f"/status?code={code}"))
        assert error.message.endswith(f"answered HTTP {code}")
        assert error.code == "media_fetch_failed"


async def test_redirects_are_followed_up_to_the_limit():
    async with fetching() as (site, fetcher):
        assert await get(fetcher, site.url("/count?left=3")) == PICTURE
        error = await refusal(fetcher, site.url("/count?left=4"))
        assert "more than 4 times (--media-max-redirects)" in error.message
        assert len(site.requests) == 5 + 5


async def test_no_redirects_where_none_are_allowed():
    async with fetching(media_max_redirects=0) as (site, fetcher):
        assert await get(fetcher, site.url("/picture")) == PICTURE
        assert "more than 0 times" in (await refusal(fetcher, site.url("/count?left=0"))).message


@pytest.mark.parametrize("path", ["/ring?at=0", "/ring?at=1"])
async def test_a_redirect_loop_is_named(path):
    async with fetching() as (site, fetcher):
        error = await refusal(fetcher, site.url(path))
        assert (error.code, error.message) == ("media_fetch_failed", f"{ITEM}: the URL redirects in a loop")


@pytest.mark.parametrize("target", ["ftp://example.com/a", "file:///etc/passwd", "data:image/png;base64,AA=="])
async def test_a_redirect_to_another_scheme_is_refused(target):
    async with fetching() as (site, fetcher):
        error = await refusal(fetcher, site.url(f"/to?url={target}"))
        assert error.code == "invalid_media_url"


async def test_content_length_over_the_limit():
    async with fetching() as (site, fetcher):
        assert len(await get(fetcher, site.url("/large?more=0"))) == MAX_BYTES
        error = await refusal(fetcher, site.url("/large?more=1"), PayloadTooLarge)
        assert "limit of 100,000 bytes (--media-max-bytes)" in error.message


async def test_an_endless_body_is_cut_off_at_the_limit():
    async with fetching() as (site, fetcher):
        error = await refusal(fetcher, site.url("/endless"), PayloadTooLarge)
        assert error.code == "media_too_large"


async def test_a_slow_body_meets_the_total_limit():
    async with fetching(media_total_timeout_s=0.2) as (site, fetcher):
        error = await refusal(fetcher, site.url("/slow"))
        assert error.code == "media_timeout"
        assert "longer than 0.2 s (--media-total-timeout-s)" in error.message


async def test_a_slow_name_look_up_meets_the_connect_limit():
    class Silent(FakeResolver):
        async def resolve(self, host, port=0, family=socket.AF_INET):
            await asyncio.Event().wait()

    async with fetching(Silent(), media_connect_timeout_s=0.1) as (_, fetcher):
        error = await refusal(fetcher, "http://slow.example/")
        assert error.code == "media_timeout"
        assert "longer than 0.1 s (--media-connect-timeout-s)" in error.message


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/short", "broke off"),
        ("/gzip", "not the gzip that it says"),
        ("/brotli", r"compressed content (br), unasked; gzip and deflate"),
        ("/status?code=x", "HTTP 500"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
async def test_broken_answers(path, reason):
    async with fetching() as (site, fetcher):
        assert reason in (await refusal(fetcher, site.url(path))).message


async def test_hosts_that_are_not_there():
    async with fetching(FakeResolver(gone=[None], empty=[[]])) as (site, fetcher):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            error = await refusal(fetcher, f"http://127.0.0.1:{unused.getsockname()[1]}/")
        assert "could not be connected to" in error.message
        for name in ("gone", "empty"):
            error = await refusal(fetcher, f"http://{name}/")
            assert "could not be resolved" in error.message
        error = await refusal(fetcher, site.url().replace("http:", "https:"))
        assert "TLS handshake" in error.message


async def test_fetches_at_once_are_bounded_and_so_is_the_wait():
    async with fetching(media_max_fetches=1, media_total_timeout_s=0.3) as (site, fetcher):
        # The only slot is held by the test: a fetch would give it back when its own time is up, and race.
        async with fetcher._slots.held("other.example", Allowance(1), ITEM):
            error = await refusal(fetcher, site.url("/picture"), TooManyRequests)
            assert (error.code, error.retry_after_s) == ("media_busy", 1.0)
            assert "1 media are being fetched already (--media-max-fetches)" in error.message
            assert not site.requests
        assert await get(fetcher, site.url("/picture")) == PICTURE


async def test_a_host_that_falls_silent_meets_the_read_limit():
    async with fetching(media_read_timeout_s=0.1) as (site, fetcher):
        error = await refusal(fetcher, site.url("/slow"))
        assert error.code == "media_timeout"
        assert "sent nothing for 0.1 s (--media-read-timeout-s)" in error.message


async def test_waiting_for_a_slow_host_holds_up_no_other_fetch():

    names = FakeResolver(**{"quick.example": [["127.0.0.1"]] * 3})
    async with fetching(names, media_max_fetches=2, media_max_fetches_per_host=1) as (site, fetcher):
        slow = [asyncio.create_task(get(fetcher, site.url("/slow"))) for _ in range(5)]
        await site.asked.wait()
        # Two slots in all: one is the slow host's, whose other four fetches must not take the second.
        for _ in range(3):
            assert await get(fetcher, site.url("/picture", "quick.example")) == PICTURE
        assert len(site.requests) == 4
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)
        assert len(fetcher._slots) == 0, "hosts are forgotten"


async def test_the_wait_for_a_slow_host_is_bounded():
    async with fetching(media_max_fetches_per_host=1, media_total_timeout_s=0.1) as (site, fetcher):
        async with fetcher._slots.held("127.0.0.1", Allowance(1), ITEM):
            error = await refusal(fetcher, site.url("/picture"), TooManyRequests)
        assert "1 media of the URL's host are being fetched already (--media-max-fetches-per-host)" in error.message


async def test_a_slot_is_held_for_one_hop_only():
    async with fetching(media_max_fetches=1, media_max_fetches_per_host=1, media_total_timeout_s=5) as (site, fetcher):
        assert await get(fetcher, site.url("/count?left=2")) == PICTURE


async def test_only_allowed_hosts_are_asked_also_behind_a_redirect():
    resolver = FakeResolver(**{"a.example": [["127.0.0.1"]] * 2, "x.b.example": [["127.0.0.1"]]})

    resolver.answers["a.example."] = [["127.0.0.1"]]
    domains = Domains("a.example, *.b.example")
    async with serving() as site, MediaFetcher(limits(), resolver, domains) as fetcher:
        assert await get(fetcher, site.url("/picture", "A.example.")) == PICTURE
        to = site.url("/picture", "x.b.example")
        assert await get(fetcher, site.url(f"/to?url={to}", "a.example")) == PICTURE
        asked = len(site.requests)
        for url in (site.url("/picture"), site.url("/picture", "b.example")):
            assert (await refusal(fetcher, url)).code == "media_domain_refused"
        assert len(site.requests) == asked
        error = await refusal(fetcher, site.url(f"/to?url={site.url('/picture')}", "a.example"))
        assert error.code == "media_domain_refused"
        assert "--media-allowed-domains" in error.message
        assert [one.path for one in site.requests[asked:]] == ["/to"]


async def test_credentials_in_a_redirect_are_refused():
    async with fetching() as (site, fetcher):
        error = await refusal(fetcher, site.url(f"/to?url=http://user:secret@127.0.0.1:{site.port}/picture"))
        assert error.code == "invalid_media_url"
        assert "credentials" in error.message


async def test_a_cancelled_fetch_frees_its_slot():
    async with fetching(media_max_fetches=1) as (site, fetcher):
        task = asyncio.create_task(get(fetcher, site.url("/slow")))
        await site.asked.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await get(fetcher, site.url("/picture")) == PICTURE


async def test_close_twice_and_no_fetch_after_it():
    async with fetching() as (site, fetcher):
        await get(fetcher, site.url("/picture"))
        await fetcher.close()
        await fetcher.close()
        with pytest.raises(Unavailable):
            await get(fetcher, site.url("/picture"))
