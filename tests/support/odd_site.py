"""A site of media on loopback that misbehaves in chosen ways, and a resolver that says what it is told."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver

from support.media_files import picture
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, TriptychError
from triptych.media.byte_limit import ByteLimit
from triptych.media.fetch import guard
from triptych.media.fetch.fetcher import MediaFetcher

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


@asynccontextmanager
async def fetching(resolver=None, **changes):
    """A media host, and a fetcher that may reach it."""
    async with serving() as site, MediaFetcher(limits(**changes), resolver) as fetcher:
        yield site, fetcher
