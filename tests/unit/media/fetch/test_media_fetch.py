"""The guarded GET against a real server on loopback."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver

from support.media_files import picture
from triptych._version import __version__
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TooManyRequests, TriptychError, Unavailable
from triptych.media.byte_limit import ByteLimit
from triptych.media.fetch import guard
from triptych.media.fetch.domains import Domains
from triptych.media.fetch.fetcher import MediaFetcher
from triptych.media.fetch.slots import Allowance

ITEM = "messages[0].content[1].image_url"
PICTURE = picture()
MAX_BYTES = 100_000


class FakeResolver(AbstractResolver):
    """Answers each look-up of a name with the next of its lists of addresses."""

    def __init__(self, **answers):
        self.answers = answers
        self.calls = []

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.calls.append(host)
        addresses = self.answers[host].pop(0)
        if addresses is None:
            raise OSError(f"no such host {host}")
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in addresses
        ]

    async def close(self):
        pass


class Site:
    """A server that counts what it is asked; ``release`` ends the answers that hang."""

    def __init__(self):
        self.requests = []
        self.asked = asyncio.Event()
        self.release = asyncio.Event()
        self.port = 0
        self.location = None
        """Where the next request is sent to."""
        self.handle_all = None
        """The body of all other answers, whatever is asked for."""
        self.headers = {}

    def url(self, path="/", host="127.0.0.1"):
        return f"http://{host}:{self.port}{path}"

    async def handle(self, request):
        self.requests.append(request)
        self.asked.set()
        location, self.location = self.location, None
        if location:
            return web.Response(status=302, headers={"Location": location})
        if self.handle_all is not None:
            return web.Response(body=self.handle_all, headers=self.headers)
        return await getattr(self, "on_" + request.path.strip("/"))(request)

    async def on_picture(self, request):
        return web.Response(body=PICTURE, content_type="text/plain", headers={"Set-Cookie": "a=b"})

    async def on_status(self, request):
        return web.Response(status=int(request.query["code"]), text="secret body")

    async def on_to(self, request):
        return web.Response(status=302, headers={"Location": request.query["url"]})

    async def on_count(self, request):
        left = int(request.query["left"])
        return web.Response(status=307, headers={"Location": f"/count?left={left - 1}" if left else "/picture"})

    async def on_ring(self, request):
        """0 leads to itself, 1 to 2 and 2 to 1."""
        after = {"0": 0, "1": 2, "2": 1}[request.query["at"]]
        return web.Response(status=301, headers={"Location": f"/ring?at={after}"})

    async def on_large(self, request):
        return web.Response(body=bytes(MAX_BYTES + int(request.query["more"])))

    async def on_endless(self, request):
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        while True:
            await response.write(bytes(1000))

    async def on_slow(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(PICTURE[:10])
        await self.release.wait()
        return response

    async def on_short(self, request):
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(PICTURE[:10])
        request.transport.close()
        return response

    async def on_gzip(self, request):
        return web.Response(body=PICTURE, headers={"Content-Encoding": "gzip"})

    async def on_brotli(self, request):
        return web.Response(body=PICTURE, headers={"Content-Encoding": "br"})


@asynccontextmanager
async def serving(host="127.0.0.1"):
    site = Site()
    runner = web.ServerRunner(web.Server(site.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    site.port = runner.addresses[0][1]
    try:
        yield site
    finally:
        site.release.set()
        await runner.cleanup()


def limits(**changes):
    return MediaLimits(**{"media_allow_private": True, "media_max_bytes": MAX_BYTES, **changes})


async def get(fetcher, url):
    return (await fetcher.fetch(guard.parse_url(url, ITEM), ITEM, ByteLimit(MAX_BYTES))).data


async def refusal(fetcher, url, kind=BadRequest):
    with pytest.raises(TriptychError) as caught:
        await get(fetcher, url)
    error = caught.value
    assert type(error) is kind, error.message
    assert error.message.startswith(f"{ITEM}: ")
    assert error.param == ITEM
    for leak in ("127.0.0", "10.0.0", "::1", "secret", "Errno", "Cannot connect", "aiohttp", "no such host"):
        assert leak not in error.message
    assert error.__cause__ is None
    return error


def run(body, resolver=None, **changes):
    async def main():
        async with serving() as site, MediaFetcher(limits(**changes), resolver) as fetcher:
            await body(site, fetcher)

    asyncio.run(main())


def test_the_bytes_whatever_the_stated_type_and_what_the_host_sees():
    async def body(site, fetcher):
        for _ in range(2):
            assert await get(fetcher, site.url("/picture?a=1%2F2")) == PICTURE
        headers = site.requests[1].headers
        assert headers["User-Agent"] == f"triptych/{__version__}"
        assert headers["Accept-Encoding"] == "identity"
        assert not {"Cookie", "Authorization", "Referer"} & set(headers)

    run(body)


@pytest.mark.parametrize("code", [404, 500, 204, 206, 304, 302])
def test_other_answers_than_200(code):
    async def body(site, fetcher):
        error = await refusal(fetcher, site.url(f"/status?code={code}"))
        assert error.message.endswith(f"answered HTTP {code}")
        assert error.code == "media_fetch_failed"

    run(body)


def test_redirects_are_followed_up_to_the_limit():
    async def body(site, fetcher):
        assert await get(fetcher, site.url("/count?left=3")) == PICTURE
        error = await refusal(fetcher, site.url("/count?left=4"))
        assert "more than 4 times (--media-max-redirects)" in error.message
        assert len(site.requests) == 5 + 5

    run(body)


def test_no_redirects_where_none_are_allowed():
    async def body(site, fetcher):
        assert await get(fetcher, site.url("/picture")) == PICTURE
        assert "more than 0 times" in (await refusal(fetcher, site.url("/count?left=0"))).message

    run(body, media_max_redirects=0)


@pytest.mark.parametrize("path", ["/ring?at=0", "/ring?at=1"])
def test_a_redirect_loop_is_named(path):
    async def body(site, fetcher):
        error = await refusal(fetcher, site.url(path))
        assert (error.code, error.message) == ("media_fetch_failed", f"{ITEM}: the URL redirects in a loop")

    run(body)


@pytest.mark.parametrize("target", ["ftp://example.com/a", "file:///etc/passwd", "data:image/png;base64,AA=="])
def test_a_redirect_to_another_scheme_is_refused(target):
    async def body(site, fetcher):
        error = await refusal(fetcher, site.url(f"/to?url={target}"))
        assert error.code == "invalid_media_url"

    run(body)


def test_content_length_over_the_limit():
    async def body(site, fetcher):
        assert len(await get(fetcher, site.url("/large?more=0"))) == MAX_BYTES
        error = await refusal(fetcher, site.url("/large?more=1"), PayloadTooLarge)
        assert "limit of 100,000 bytes (--media-max-bytes)" in error.message

    run(body)


def test_an_endless_body_is_cut_off_at_the_limit():
    async def body(site, fetcher):
        error = await refusal(fetcher, site.url("/endless"), PayloadTooLarge)
        assert error.code == "media_too_large"

    run(body)


def test_a_slow_body_meets_the_total_limit():
    async def body(site, fetcher):
        error = await refusal(fetcher, site.url("/slow"))
        assert error.code == "media_timeout"
        assert "longer than 0.2 s (--media-total-timeout-s)" in error.message

    run(body, media_total_timeout_s=0.2)


def test_a_slow_name_look_up_meets_the_connect_limit():
    class Silent(FakeResolver):
        async def resolve(self, host, port=0, family=socket.AF_INET):
            await asyncio.Event().wait()

    async def body(site, fetcher):
        error = await refusal(fetcher, "http://slow.example/")
        assert error.code == "media_timeout"
        assert "longer than 0.1 s (--media-connect-timeout-s)" in error.message

    run(body, Silent(), media_connect_timeout_s=0.1)


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
def test_broken_answers(path, reason):
    async def body(site, fetcher):
        assert reason in (await refusal(fetcher, site.url(path))).message

    run(body)


def test_hosts_that_are_not_there():
    async def body(site, fetcher):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            error = await refusal(fetcher, f"http://127.0.0.1:{unused.getsockname()[1]}/")
        assert "could not be connected to" in error.message
        for name in ("gone", "empty"):
            error = await refusal(fetcher, f"http://{name}/")
            assert "could not be resolved" in error.message
        error = await refusal(fetcher, site.url().replace("http:", "https:"))
        assert "TLS handshake" in error.message

    run(body, FakeResolver(gone=[None], empty=[[]]))


def test_fetches_at_once_are_bounded_and_so_is_the_wait():
    async def body(site, fetcher):
        # The only slot is held by the test: a fetch would give it back when its own time is up, and race.
        async with fetcher._slots.held("other.example", Allowance(1), ITEM):
            error = await refusal(fetcher, site.url("/picture"), TooManyRequests)
            assert (error.code, error.retry_after_s) == ("media_busy", 1.0)
            assert "1 media are being fetched already (--media-max-fetches)" in error.message
            assert not site.requests
        assert await get(fetcher, site.url("/picture")) == PICTURE

    run(body, media_max_fetches=1, media_total_timeout_s=0.3)


def test_a_host_that_falls_silent_meets_the_read_limit():
    async def body(site, fetcher):
        error = await refusal(fetcher, site.url("/slow"))
        assert error.code == "media_timeout"
        assert "sent nothing for 0.1 s (--media-read-timeout-s)" in error.message

    run(body, media_read_timeout_s=0.1)


def test_who_waits_for_a_slow_host_holds_up_nobody_else():
    async def body(site, fetcher):
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

    names = FakeResolver(**{"quick.example": [["127.0.0.1"]] * 3})
    run(body, names, media_max_fetches=2, media_max_fetches_per_host=1)


def test_the_wait_for_a_slow_host_is_bounded():
    async def body(site, fetcher):
        async with fetcher._slots.held("127.0.0.1", Allowance(1), ITEM):
            error = await refusal(fetcher, site.url("/picture"), TooManyRequests)
        assert "1 media of the URL's host are being fetched already (--media-max-fetches-per-host)" in error.message

    run(body, media_max_fetches_per_host=1, media_total_timeout_s=0.1)


def test_a_slot_is_held_for_one_hop_only():
    async def body(site, fetcher):
        assert await get(fetcher, site.url("/count?left=2")) == PICTURE

    run(body, media_max_fetches=1, media_max_fetches_per_host=1, media_total_timeout_s=5)


def test_only_allowed_hosts_are_asked_also_behind_a_redirect():
    resolver = FakeResolver(**{"a.example": [["127.0.0.1"]] * 2, "x.b.example": [["127.0.0.1"]]})

    async def main():
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

    resolver.answers["a.example."] = [["127.0.0.1"]]
    asyncio.run(main())


def test_credentials_in_a_redirect_are_refused():
    async def body(site, fetcher):
        error = await refusal(fetcher, site.url(f"/to?url=http://user:secret@127.0.0.1:{site.port}/picture"))
        assert error.code == "invalid_media_url"
        assert "credentials" in error.message

    run(body)


def test_a_cancelled_fetch_frees_its_slot():
    async def body(site, fetcher):
        task = asyncio.create_task(get(fetcher, site.url("/slow")))
        await site.asked.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await get(fetcher, site.url("/picture")) == PICTURE

    run(body, media_max_fetches=1)


def test_close_twice_and_no_fetch_after_it():
    async def body(site, fetcher):
        await get(fetcher, site.url("/picture"))
        await fetcher.close()
        await fetcher.close()
        with pytest.raises(Unavailable):
            await get(fetcher, site.url("/picture"))

    run(body)
