"""Time limits of HTTP connections: for a head, between requests, for a client that reads nothing."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from support.http_server import get, reading_nothing, served
from support.loops import until
from support.raw_http import connected, response

SHORT = {"head_timeout_s": 0.1, "keep_alive_timeout_s": 0.1, "send_timeout_s": 0.2}
LONG = {"head_timeout_s": 30.0, "keep_alive_timeout_s": 30.0, "send_timeout_s": 30.0}


def short(name):
    return {**LONG, name: SHORT[name]}


async def test_a_silent_connection_is_closed_without_an_answer():
    async with served(**short("head_timeout_s")) as s, connected(s.port) as (reader, _):
        assert await reader.read() == b"", "an answer to nothing might be taken for that to a later request"
        assert s.counts.timed_out_head == 1


async def test_half_a_head_gets_408():
    async with served(**short("head_timeout_s")) as s, connected(s.port) as (reader, writer):
        writer.write(get("/live")[:-2])
        status, headers, body = await response(reader)
        assert (status, headers["connection"]) == (408, "close")
        error = json.loads(body)["error"]
        assert error["code"] == "head_timeout"
        assert "--head-timeout-s" in error["message"]
        assert await reader.read() == b""


async def test_a_head_that_comes_byte_by_byte_has_the_same_time_limit():
    async with served(**short("head_timeout_s")) as s, connected(s.port) as (reader, writer):
        writer.write(b"GET /live HTTP/1.1\r\n")
        answer = asyncio.create_task(reader.read())
        while not answer.done():
            writer.write(b"a: b\r\n")
            await asyncio.wait([answer], timeout=0.01)
        assert b" 408 " in await answer


@pytest.mark.parametrize("limit", ["keep_alive_timeout_s", "head_timeout_s"])
async def test_idle_time_and_the_second_head_have_time_limits(limit):
    async with served(**short(limit)) as s, connected(s.port) as (reader, writer):
        writer.write(get("/a"))
        assert (await response(reader))[0] == 200
        if limit == "head_timeout_s":
            writer.write(b"GET /")
        rest = await reader.read()
        assert (b" 408 " in rest) == (limit == "head_timeout_s")
        assert s.counts.timed_out_idle == (limit == "keep_alive_timeout_s")


async def test_a_connection_with_a_request_in_progress_has_no_time_limit():
    async with served(**SHORT) as s, connected(s.port) as (reader, writer):
        writer.write(get("/slow"))
        await reader.readuntil(b"one\r\n")
        async with connected(s.port) as (later, _):
            assert await later.read() == b""  # more than a whole limit has passed
        async with connected(s.port) as (_, other):
            other.write(get("/go"))
            assert await reader.readuntil(b"two\r\n")


@pytest.mark.parametrize("path", ["/endless", "/long"])
@pytest.mark.parametrize("half_closed", [False, True])
async def test_a_client_that_reads_nothing_is_cut_off(path, half_closed):
    """This holds while the answer is made and after its end, and for a client that has closed its side."""
    async with served(**short("send_timeout_s")) as s:
        async with reading_nothing(s.port, get(path, "connection: close")) as client:
            await until(lambda: s.server.connections._stalled, "the client is seen to read nothing")
            if half_closed:
                client.shutdown(socket.SHUT_WR)
            await until(lambda: s.open == 0, "the connection is gone")
        assert s.counts.timed_out_send == 1
        await until(lambda: s.left == (path == "/endless"), "the application hears of it")


async def test_a_slow_client_that_keeps_reading_is_not_cut_off():
    async with served(**short("send_timeout_s")) as s, reading_nothing(s.port, get("/endless")) as client:
        await until(lambda: s.server.connections._stalled, "the client is slow")
        loop = asyncio.get_running_loop()
        end = loop.time() + 4 * SHORT["send_timeout_s"]
        while loop.time() < end:
            assert await loop.sock_recv(client, 4096), "it was cut off"
            await asyncio.sleep(0.02)
        assert s.counts.timed_out_send == 0
        assert s.open == 1


async def test_unsent_bytes_are_bounded_and_counted():
    async with served(**LONG) as s, reading_nothing(s.port, get("/endless")):
        await until(lambda: s.server.connections._stalled, "the client is seen to read nothing")
        sent = s.sent
        metrics = {one.name: one.value for one in s.server.connections.metrics()}
        assert metrics["triptych_http_connections_stalled"] == 1
        assert 64 << 10 < metrics["triptych_http_connections_unsent_bytes"] < 1 << 20
        async with connected(s.port) as (reader, writer):
            writer.write(get("/a"))
            await response(reader)
        assert s.sent == sent, "the answer goes on though nobody reads it"


async def test_a_discarded_body_does_not_keep_its_connection():
    """The answer came before the body. The rest of the body is discarded, for a limited time."""
    async with served(**short("head_timeout_s")) as s, connected(s.port) as (reader, writer):
        writer.write(get("/refused", "content-length: 1000000"))
        assert (await response(reader))[2] == b"no"
        end = asyncio.create_task(reader.read())
        while not end.done():
            writer.write(b"x")
            await asyncio.wait([end], timeout=0.01)
        assert s.counts.timed_out_head == 1
