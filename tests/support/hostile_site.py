"""A web site that does what no sound one does, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

from support.checkpoints import picture

HEAD = b"HTTP/1.1 200 OK\r\n"
SECRET = "secret-of-the-site"
"""Stands in every text that the site sends; no client may read it."""
_DRIP_S = 0.02


class HostileSite:
    """See ``hostile_site``. ``paths`` are those asked for."""

    def __init__(self) -> None:
        self.port = 0
        self.paths: list[str] = []
        self.unasked_bytes = 0
        self.left = asyncio.Event()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        target = urlsplit(head.split(b" ")[1].decode())
        self.paths.append(target.path)
        await getattr(self, f"on_{target.path.strip('/')}")(writer, parse_qs(target.query, encoding="latin-1"))

    async def on_good(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        body = picture(56, 56)
        writer.write(HEAD + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()

    async def on_to(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """To ``url``, with bytes in Latin-1 as they stand there."""
        location = query["url"][0].encode("latin-1")
        writer.write(b"HTTP/1.1 302 %b\r\nlocation: %b\r\n" % (SECRET.encode(), location))
        writer.write(b"content-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()

    async def on_validators(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """A good picture, with an ETag and a date that no request may hold."""
        body = picture(56, 56)
        writer.write(HEAD + b'etag: "\x01\xff"\r\nlast-modified: \xfe\x02\r\n')
        writer.write(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()

    async def on_endless(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """A body without an end and without a length."""
        writer.write(HEAD + b"\r\n" + picture(8, 8))
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async def on_endless_chunks(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            await writer.drain()

    async def on_crumbs(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\na\r\n" * 10_000)
            await writer.drain()

    async def on_endless_extension(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """Of a chunk's size (RFC 9112, 7.1.1)."""
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n5;")
        while True:
            writer.write(b"a" * 65536)
            await writer.drain()

    async def on_extensions(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """Chunks as large as chunks may be small, each with an extension ten times its size."""
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"80;" + b"a" * 1280 + b"\r\n" + bytes(128) + b"\r\n")
            await writer.drain()

    async def on_endless_trailers(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\naaaaa\r\n0\r\n")
        while True:
            writer.write(b"x-a: b\r\n" * 1000)
            await writer.drain()

    async def on_small_chunks(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """A sound picture and half a MiB behind it, in the smallest chunks that are read, sizes in 8 digits."""
        body = picture(56, 56) + bytes(1 << 19)
        writer.write(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 128):
            piece = body[start : start + 128]
            writer.write(b"%08x\r\n%b\r\n" % (len(piece), piece))
        writer.write(b"0\r\nx-sum: 1\r\n\r\n")
        await writer.drain()

    async def on_chatty(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """A good picture, and then more answers that nobody asked for."""
        body = picture(56, 56)
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        try:
            while True:
                await writer.drain()
                await asyncio.sleep(0)
                writer.write((HEAD + b"content-length: 0\r\n\r\n") * 100)
                self.unasked_bytes += 3800
        finally:
            self.left.set()

    async def on_interim(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """Never the answer itself."""
        while True:
            writer.write(b"HTTP/1.1 100 %b\r\n\r\n" % SECRET.encode() * 10_000)
            await writer.drain()

    async def on_hints(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """Early hints, as sound sites have them, and a good picture in small chunks."""
        body = picture(56, 56)
        pieces = [body[start : start + 200] for start in range(0, len(body), 200)]
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n" * 3)
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        writer.write(b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n")
        await writer.drain()

    async def on_endless_head(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        writer.write(HEAD)
        while True:
            writer.write(b"x-a: " + SECRET.encode() + b"\r\n")
            await writer.drain()

    async def on_endless_line(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        writer.write(HEAD + b"x-a: ")
        while True:
            writer.write(b"a" * 4096)
            await writer.drain()

    async def on_silent(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        await asyncio.Event().wait()

    async def on_silent_body(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        writer.write(HEAD + b"content-length: 5000\r\n\r\n" + picture(8, 8)[:20])
        await asyncio.Event().wait()

    async def on_drip(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """A byte now and then, before any silence is long enough."""
        writer.write(HEAD + b"content-length: 5000\r\n\r\n")
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(_DRIP_S)

    async def on_drip_head(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        writer.write(HEAD + b"x-a: ")
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(_DRIP_S)

    async def on_lies(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        """Less than the stated length, and then nothing."""
        writer.write(HEAD + b"content-length: 5000\r\n\r\n" + SECRET.encode())

    async def on_nonsense(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        writer.write(b"\0\xff" + SECRET.encode() + b"\r\n\r\n")

    async def on_two_lengths(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        writer.write(HEAD + b"content-length: 5\r\ncontent-length: 7\r\n\r\n" + SECRET.encode())

    async def on_text(self, writer: asyncio.StreamWriter, query: dict[str, list[str]]) -> None:
        writer.write(HEAD + b"content-type: image/png\r\n\r\n" + SECRET.encode())


@asynccontextmanager
async def hostile_site() -> AsyncIterator[HostileSite]:
    site = HostileSite()
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        running.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await site.answer(reader, writer)
        finally:
            running.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
