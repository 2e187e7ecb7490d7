"""The guarded GET against a real server on loopback."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from media_files import picture

from triptych._version import __version__
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TooManyRequests, TriptychError, Unavailable
from triptych.media.fetch import MediaFetcher

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

    def url(self, path="/", host="127.0.0.1"):
        return f"http://{host}:{self.port}{path}"

    async def handle(self, request):
        self.requests.append(request)
        self.asked.set()
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


async def refusal(fetcher, url, kind=BadRequest):
    with pytest.raises(TriptychError) as caught:
        await fetcher.fetch(url, ITEM)
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
            assert await fetcher.fetch(site.url("/picture?a=1%2F2"), ITEM) == PICTURE
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
        assert await fetcher.fetch(site.url("/count?left=3"), ITEM) == PICTURE
        error = await refusal(fetcher, site.url("/count?left=4"))
        assert "more than 4 times (--media-max-redirects)" in error.message
        assert len(site.requests) == 5 + 5

    run(body)


def test_no_redirects_where_none_are_allowed():
    async def body(site, fetcher):
        assert await fetcher.fetch(site.url("/picture"), ITEM) == PICTURE
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
        assert len(await fetcher.fetch(site.url("/large?more=0"), ITEM)) == MAX_BYTES
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
    ("path", "reason"), [("/short", "broke off"), ("/gzip", "compressed content"), ("/status?code=x", "HTTP 500")]
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
        await fetcher._slots.acquire()
        error = await refusal(fetcher, site.url("/picture"), TooManyRequests)
        assert (error.code, error.retry_after_s) == ("media_busy", 1.0)
        assert "1 media are being fetched already (--media-max-fetches)" in error.message
        assert not site.requests
        fetcher._slots.release()
        assert await fetcher.fetch(site.url("/picture"), ITEM) == PICTURE

    run(body, media_max_fetches=1, media_total_timeout_s=0.3)


def test_a_cancelled_fetch_frees_its_slot():
    async def body(site, fetcher):
        task = asyncio.create_task(fetcher.fetch(site.url("/slow"), ITEM))
        await site.asked.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await fetcher.fetch(site.url("/picture"), ITEM) == PICTURE

    run(body, media_max_fetches=1)


def test_close_twice_and_no_fetch_after_it():
    async def body(site, fetcher):
        await fetcher.fetch(site.url("/picture"), ITEM)
        await fetcher.close()
        await fetcher.close()
        with pytest.raises(Unavailable):
            await fetcher.fetch(site.url("/picture"), ITEM)

    run(body)
