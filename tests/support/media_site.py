"""A small web site that media URLs lead to: good pictures, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

from support.checkpoints import picture

_ROUTES = {
    "/good.png": (b"200 OK", b"", picture(56, 56)),
    "/kept.png": (b"200 OK", b"cache-control: max-age=60\r\n", picture(56, 56) + bytes(40_000)),
    "/gone": (b"404 Not Found", b"", b"no such thing"),
    "/broken": (b"500 Internal Server Error", b"", b"Traceback: secret"),
    "/page": (b"200 OK", b"content-type: image/png\r\n", b"<!DOCTYPE html><html></html>"),
    "/loop": (b"302 Found", b"location: /loop\r\n", b""),
    "/far": (b"302 Found", b"location: http://10.0.0.1/secret\r\n", b""),
    "/file": (b"302 Found", b"location: file:///etc/passwd\r\n", b""),
    "/large": (b"200 OK", b"", bytes(200_000)),
}


@asynccontextmanager
async def media_site(files: Mapping[str, bytes] = MappingProxyType({})) -> AsyncIterator[str]:
    """Serve within the block, which gets the base URL. ``/hang`` never answers; ``/hop/N`` redirects N times.

    ``files`` are served besides, by their paths.
    """
    routes = {**_ROUTES, **{path: (b"200 OK", b"", body) for path, body in files.items()}}
    hung: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        hung.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            if path == "/hang":
                await reader.read()  # until the other side gives up
                return
            status, headers, body = routes.get(path) or _hop(path)
            writer.write(b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n" % (status, headers, len(body)))
            writer.write(b"connection: close\r\n\r\n" + body)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            hung.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in hung:
            task.cancel()
        await asyncio.gather(*hung, return_exceptions=True)


def _hop(path: str) -> tuple[bytes, bytes, bytes]:
    left = int(path.rpartition("/")[2])
    target = f"/hop/{left - 1}" if left > 1 else "/good.png"
    return b"302 Found", f"location: {target}\r\n".encode(), b""
