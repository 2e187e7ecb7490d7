"""Speaks HTTP over a plain socket, for bytes that no client library would send."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def send(port: int, data: bytes, *, limit_s: float = 10.0) -> bytes:
    """Sends ``data``, and reads until the server closes (``data`` should ask it to)."""
    async with connected(port) as (reader, writer):
        writer.write(data)
        async with asyncio.timeout(limit_s):
            return await reader.read()


async def response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Reads one response of stated length, or chunked, on a kept connection: (status, headers, body)."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:] if line)}
    if headers.get("transfer-encoding") != "chunked":
        return int(head[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return int(head[0].split()[1]), headers, body


def post(path: str, body: bytes, *headers: str) -> bytes:
    kind = "content-type: application/json"
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", kind, *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
