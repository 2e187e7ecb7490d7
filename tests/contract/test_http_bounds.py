"""Limits on HTTP connections: which are replaced, which are refused, and that probes are still answered."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import pytest

from support.http_server import connected_from, get, reading_nothing, served
from support.loops import until
from support.raw_http import connected, response
from triptych.config.http import HttpConfig
from triptych.frontend.http import connections
from triptych.frontend.http.addresses import network_of

WAITS = get("/waits")


async def busy(stack, s, count, address="127.0.0.1"):
    """Opens connections that are busy for as long as the test."""
    before = len(s.seen)
    for _ in range(count):
        _, writer = await stack.enter_async_context(connected_from(address, s.port))
        writer.write(WAITS)
    await until(lambda: len(s.seen) == before + count, "all are being answered")


async def asked(port, path, address="127.0.0.1"):
    """Returns (status, headers, error code) of a request on a new connection."""
    async with connected_from(address, port) as (reader, writer):
        writer.write(get(path))
        status, headers, body = await response(reader)
        return status, headers, json.loads(body).get("error", {}).get("code")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(connections, "GRACE_S", 0.0)


async def test_an_idle_connection_gives_way_to_a_new_one(impatient):
    async with served(max_connections=3, max_connections_per_address=9) as s, AsyncExitStack() as stack:
        await busy(stack, s, 1)
        idle = [await stack.enter_async_context(connected(s.port)) for _ in range(2)]
        for reader, writer in idle:
            writer.write(get("/a"))
            await response(reader)
        assert (await asked(s.port, "/a"))[0] == 200
        assert await idle[0][0].read() == b"", "the one that was idle longest is closed"
        assert s.counts.evicted == 1
        idle[1][1].write(get("/a"))
        assert (await response(idle[1][0]))[0] == 200, "the others stay"
        assert s.left == 0, "who is being answered does not give way"


@pytest.mark.parametrize("opening", [b"", WAITS[:-2]], ids=["silent", "half a head"])
async def test_a_connection_without_a_head_is_closed_for_a_new_one(impatient, opening):
    async with served(max_connections=8) as s, AsyncExitStack() as stack:
        for _ in range(100):
            _, writer = await stack.enter_async_context(connected(s.port))
            writer.write(opening)
        for path in ("/a", "/live") * 5:
            assert (await asked(s.port, path))[0] == 200
        assert s.open <= 8 + 4


async def test_a_new_connection_is_closed_only_for_one_with_a_request(monkeypatch):
    monkeypatch.setattr(connections, "GRACE_S", 10.0)
    settings = {"max_connections": 2, "max_connections_per_address": 9}
    async with served(**settings) as s, AsyncExitStack() as stack:
        first, second, (reader, writer) = [await stack.enter_async_context(connected(s.port)) for _ in range(3)]
        await until(lambda: s.open == 3, "the third is taken over the bound")
        first[1].write(get("/b"))
        assert (await response(first[0]))[0] == 200, "nobody had to go"
        second[1].write(WAITS)
        first[1].write(WAITS)
        await until(lambda: len(s.seen) == 3, "both are being answered")
        writer.write(get("/a"))
        status, headers, body = await response(reader)
        assert (status, headers["connection"]) == (503, "close")
        assert int(headers["retry-after"]) >= 1
        assert json.loads(body)["error"]["code"] == "too_many_connections"


async def test_a_request_takes_the_place_of_a_silent_connection_at_once(monkeypatch):
    monkeypatch.setattr(connections, "GRACE_S", 10.0)
    settings = {"max_connections": 2, "max_connections_per_address": 9}
    async with served(**settings) as s, connected(s.port) as (silent, _), connected(s.port):
        async with connected(s.port) as (reader, writer):
            for _ in range(2):
                writer.write(get("/a"))
                status, headers, _ = await response(reader)
                assert (status, headers.get("connection")) == (200, None), "it is a connection like others now"
        assert await silent.read() == b""


@pytest.mark.parametrize("stalled", [False, True])
async def test_only_probes_are_answered_while_all_connections_are_busy(stalled):
    async with served(max_connections=4, max_connections_per_address=9) as s, AsyncExitStack() as stack:
        if stalled:
            for _ in range(4):
                await stack.enter_async_context(reading_nothing(s.port, get("/endless")))
            await until(lambda: len(s.server.connections._stalled) == 4, "none of them reads")
        else:
            await busy(stack, s, 4)
        for _ in range(connections.MAX_SURPLUS):  # silent clients there keep nobody out
            await stack.enter_async_context(connected(s.port))
        for path in ("/live", "/ready", "/health", "/metrics"):
            status, headers, _ = await asked(s.port, path)
            assert (status, headers["connection"]) == (200, "close")
        status, headers, code = await asked(s.port, "/a")
        assert (status, code) == (503, "too_many_connections")
        assert s.counts.refused_full == 1


async def test_a_freed_place_is_used_again():
    async with served(max_connections=1, max_connections_per_address=9) as s:
        async with AsyncExitStack() as stack:
            await busy(stack, s, 1)
            assert (await asked(s.port, "/a"))[0] == 503
        await until(lambda: s.open == 0, "all are gone")
        assert (await asked(s.port, "/a"))[0] == 200


async def test_connections_per_address_are_limited():
    async with served(max_connections=8) as s, AsyncExitStack() as stack:
        await busy(stack, s, 4)
        status, headers, code = await asked(s.port, "/a")
        assert (status, headers["connection"], code) == (429, "close", "too_many_connections")
        assert (await asked(s.port, "/live"))[0] == 200
        assert (await asked(s.port, "/a", "127.0.0.2"))[0] == 200
        assert s.counts.refused_address == 1


async def test_a_connection_over_the_limit_is_closed_soon(monkeypatch):
    monkeypatch.setattr(connections, "SURPLUS_S", 0.1)
    async with served(max_connections=1, head_timeout_s=0.4) as s, AsyncExitStack() as stack:
        await busy(stack, s, 1)
        async with connected(s.port) as (reader, _):
            assert await reader.read() == b""
        assert s.counts.timed_out_surplus == 1


def test_the_limit_leaves_descriptors_for_other_uses(monkeypatch):
    for limit, most in ((64, 30), (256, 200), (1_000_000, connections.MAX_CONNECTIONS)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        of_all = connections.Connections(HttpConfig())
        assert 2 <= of_all.max_open <= most
        assert of_all.max_surplus >= 1
        assert of_all.max_open + of_all.max_surplus < limit - 10


def test_addresses_that_count_as_one_client():
    for address, network in (
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:0:1:2::3", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ):
        assert network_of(address) == network


async def test_an_address_is_counted_as_long_as_it_has_connections():
    """Connections over the limit count as well, because one of them may get a place later."""
    async with served(max_connections=4, max_connections_per_address=1) as s, AsyncExitStack() as stack:
        async with AsyncExitStack() as first:
            await busy(first, s, 1)
            _, writer = await stack.enter_async_context(connected(s.port))
            await until(lambda: s.open == 2, "the second is over the bound")
        await until(lambda: s.open == 1, "the first is gone")
        writer.write(WAITS)
        await until(lambda: len(s.seen) == 2, "the second has its place")
        assert (await asked(s.port, "/a"))[0] == 429
        assert (await asked(s.port, "/a", "127.0.0.2"))[0] == 200
