"""The TCP request plane against peers that do not keep to the protocol, or stop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import struct
import time

import msgspec
import pytest
from test_request_plane import Watched, count, echo

from support.loops import SOON_S, until
from triptych.contracts.errors import ConfigError, PayloadTooLarge, WorkerLost
from triptych.planes.request import frames
from triptych.planes.request.base import Peer
from triptych.planes.request.frames import Hello, Type, pack, pack_call
from triptych.planes.request.limits import USUAL, WireLimits
from triptych.planes.request.tcp_client import TcpRequestClient
from triptych.planes.request.tcp_server import TcpRequestServer

HELLO = pack(Type.HELLO, 0, msgspec.msgpack.encode(Hello(frames.VERSION)))
HEADER = struct.Struct(">IBI")


async def closed_by_peer(plane, port, data, limit_s=5.0):
    """Whether the server closes the connection after ``data``; what it said before that."""
    async with plane.connected(port) as (reader, writer):
        writer.write(data)
        async with asyncio.timeout(limit_s):
            with contextlib.suppress(ConnectionResetError):
                return await reader.read()
    return b""


MALFORMED = {
    "no hello": pack_call(1, "work", b"x"),
    "hello of another version": pack(Type.HELLO, 0, msgspec.msgpack.encode(Hello(99))),
    "hello that is no msgpack": pack(Type.HELLO, 0, b"\xc1\xc1"),
    "hello that is another struct": pack(Type.HELLO, 0, msgspec.msgpack.encode({"a": 1})),
    "hello over its limit": pack(Type.HELLO, 0, bytes(5000)),
    "http": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "oversize frame": HELLO + HEADER.pack(0xFFFF_FFFF, Type.CALL, 1),
    "empty call": HELLO + pack(Type.CALL, 1),
    "call whose name is cut": HELLO + pack(Type.CALL, 1, b"\xffwork"),
    "name that is no text": HELLO + pack(Type.CALL, 1, b"\x02\xff\xfe"),
    "stream opened twice": HELLO + pack_call(1, "wait", b"") + pack_call(1, "wait", b""),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_a_peer_that_breaks_the_protocol_loses_its_connection_only(plane, loop, data):
    async with plane.line(count) as line:
        line.server._handlers["wait"] = Watched(0)
        async with line.call(b"3000") as good:
            got = await anext(good)
            assert await closed_by_peer(plane, line.port, data) == b""
            async for batch in good:
                got += batch
        assert len(got) == 3000, "the others go on"
        await until(lambda: len(line.server.tasks) == 0, "no call is left behind")


async def test_many_that_do_not_say_who_they_are_keep_nobody_out(plane, loop):
    plane.limits = WireLimits(max_ungreeted=3)
    async with plane.line(count, token="t", client_token="t") as line, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(plane.connected(line.port)) for _ in range(10)]
        async with line.call(b"5") as call:
            assert len(await anext(call)) > 0
        with contextlib.suppress(ConnectionError):
            assert await silent[0][0].read() == b"", "the one that was silent longest is closed"
        await until(lambda: len(line.server.ungreeted) <= 3, "few are left")


async def test_a_caller_without_a_hello_is_disconnected_however_much_else_it_sends(plane, loop, caplog):
    """Anybody may connect; only who has the token may stay."""
    plane.limits = WireLimits(hello_s=0.2)
    async with plane.line(count, token="t", client_token="t") as line:
        async with line.call(b"3000") as good, plane.connected(line.port) as (reader, writer):
            got = await anext(good)
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(SOON_S):
                    while not reader.at_eof():
                        writer.write(pack(Type.PING, 0))
                        await reader.read(1000)
            async for batch in good:
                got += batch
        assert len(got) == 3000, "who has said it stays"
        await asyncio.sleep(0)
    assert "no hello within 0.2 s" in caplog.text
    assert "connection of 127.0.0.1:" in caplog.text, "whose it was"


@pytest.mark.parametrize("greeted", [False, True])
async def test_random_bytes(plane, loop, greeted):
    rng = random.Random(3)
    async with plane.line(echo) as line:

        async def noise():
            async with plane.connected(line.port) as (reader, writer):
                writer.write(HELLO * greeted + rng.randbytes(rng.randrange(1, 3000)))
                if writer.can_write_eof():
                    writer.write_eof()
                else:
                    writer.close()
                async with asyncio.timeout(SOON_S):
                    with contextlib.suppress(ConnectionResetError):
                        await reader.read()

        for _ in range(5):
            await asyncio.gather(*(noise() for _ in range(10)), line.all(b"good"))
        assert await line.all(b"good") == [b"good"]
        await until(lambda: len(line.server.connections) == 1, "broken connections are forgotten")


async def test_frames_mangled_one_byte_at_a_time(plane):
    """Valid traffic with one byte changed: the server may refuse or answer it, and lives on."""
    rng = random.Random(5)
    traffic = HELLO + pack_call(1, "work", b"payload") + pack(Type.CREDIT, 1, b"\0\0\0\1") + pack(Type.CANCEL, 1)
    async with plane.line(echo) as line:
        for _ in range(60):
            data = bytearray(traffic)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            async with plane.connected(line.port) as (_, writer):
                writer.write(bytes(data))
                await writer.drain()
        assert await line.all(b"good") == [b"good"]
        await until(lambda: len(line.server.tasks) == 0, "no call is left behind")


@pytest.mark.parametrize("cut", [1, 5, 9, 12])
async def test_a_truncated_frame_then_nothing(plane, cut):
    async with plane.line(echo) as line:
        async with plane.connected(line.port) as (_, writer):
            writer.write(HELLO + pack_call(1, "work", bytes(100))[:cut])
            await writer.drain()
            assert await line.all(b"good") == [b"good"]
        await until(lambda: len(line.server.connections) == 1, "the half frame went with its connection")


async def test_frames_in_single_bytes_are_put_together(plane, loop):
    async with plane.line(echo) as line, plane.connected(line.port) as (reader, writer):
        for byte in HELLO + pack_call(7, "work", b"slow"):
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert HEADER.unpack(await reader.readexactly(9)) == (0, Type.TAKEN, 7)
        length, kind, stream = HEADER.unpack(await reader.readexactly(9))
        assert (kind, stream, await reader.readexactly(length)) == (Type.DATA, 7, b"slow")
        assert HEADER.unpack(await reader.readexactly(9)) == (0, Type.END, 7)


async def test_frames_of_unknown_streams_and_types_are_ignored(plane):
    async with plane.line(echo) as line, plane.connected(line.port) as (reader, writer):
        writer.write(HELLO + pack(Type.CANCEL, 99) + pack(Type.CREDIT, 98, b"\0\0\0\1"))
        writer.write(HEADER.pack(3, 77, 0) + b"new" + pack(Type.PING, 0))
        assert HEADER.unpack(await reader.readexactly(9)) == (0, Type.PONG, 0)


IMPATIENT = WireLimits(keepalive_s=0.05, silence_s=0.25)
PATIENT = WireLimits(keepalive_s=0.05, silence_s=60.0)


async def test_a_frozen_worker_is_noticed_long_before_its_answer_is_due(loop):
    """It accepts, and never says a word: a stopped process, or a host that is gone."""
    held = []

    async def frozen(reader, writer):
        held.append(writer)

    server = await asyncio.start_server(frozen, "127.0.0.1", 0)
    client = TcpRequestClient(limits=IMPATIENT)
    with pytest.raises(WorkerLost):  # long before the limit of this test's own
        async with client.call(Peer("127.0.0.1", server.sockets[0].getsockname()[1]), "x", b"", silence_s=600) as call:
            await anext(call)
    await client.close()
    server.close()
    for writer in held:
        writer.transport.abort()


async def test_a_frozen_client_frees_the_worker(plane):
    plane.limits = IMPATIENT
    handler = Watched(1)
    async with plane.line(handler) as line, plane.connected(line.port) as (_, writer):
        writer.write(HELLO + pack_call(1, "work", b""))
        await until(lambda: handler.started, "the call arrived")
        await handler.ended()


@pytest.mark.event_loop(kind="virtual")
async def test_a_quiet_but_living_peer_is_kept(plane):
    async def slow(payload):
        await asyncio.sleep(3 * USUAL.silence_s)
        yield b"late"

    async with plane.line(slow) as line:
        assert await line.all() == [b"late"]
        assert len(line.server.connections) == 1


def test_a_dead_peer_is_found_in_six_seconds_and_a_late_one_kept():
    """A worker's loop may be late by some seconds while its machine has too much to do."""
    assert USUAL.silence_s >= 5
    assert USUAL.silence_s + USUAL.keepalive_s <= 6


async def test_a_peer_counts_as_silent_until_it_answers_the_last_ping(loop):
    held = []

    async def mute(reader, writer):
        held.append(writer)

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    peer, client = Peer(*server.sockets[0].getsockname()), TcpRequestClient(limits=PATIENT)
    assert not client.is_silent(peer), "nobody has spoken with it"
    async with client.call(peer, "x", b"", silence_s=60):
        await until(lambda: client.is_silent(peer), "its sign of life is overdue")
        held[0].write(pack(Type.PONG, 0))
        await until(lambda: not client.is_silent(peer), "it has answered")
    await client.close()
    assert not client.is_silent(peer)
    server.close()
    held[0].transport.abort()


async def test_a_loop_that_was_late_itself_takes_nobody_for_silent(plane, loop):
    plane.limits = IMPATIENT
    async with plane.line(echo) as line:
        await line.all(b"x")
        (ours,) = line.client.opened
        await asyncio.sleep(IMPATIENT.keepalive_s)
        time.sleep(2 * IMPATIENT.silence_s)  # noqa: ASYNC251 (to be late)
        await asyncio.sleep(2 * IMPATIENT.keepalive_s)
        assert not ours.closed
        assert await line.all(b"x") == [b"x"]


@pytest.mark.event_loop(kind="virtual")
async def test_a_peer_that_takes_a_large_frame_slowly_is_not_silent():
    """The ping is behind the frame."""
    held = []

    async def mute(reader, writer):
        held.append(writer)

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    client = TcpRequestClient()
    async with client.call(Peer(*server.sockets[0].getsockname()), "x", b"", silence_s=60):
        (ours,) = client.opened
        for _ in range(4 * math.ceil(USUAL.silence_s / USUAL.keepalive_s)):
            ours.pause_writing()
            await asyncio.sleep(USUAL.keepalive_s / 2)
            ours.resume_writing()
        assert not ours.closed
        await asyncio.sleep(USUAL.silence_s + 2 * USUAL.keepalive_s)
        assert ours.closed, "and then it takes no more"
    await client.close()
    server.close()
    held[0].transport.abort()


async def test_a_malformed_answer_is_a_lost_worker(loop):
    held = []

    async def junk(reader, writer):
        held.append(writer)
        await reader.readexactly(9)
        writer.write(HEADER.pack(3, Type.ERROR, 1) + b"\xc1\xc1\xc1")

    server = await asyncio.start_server(junk, "127.0.0.1", 0)
    client = TcpRequestClient()
    with pytest.raises(WorkerLost):
        async with client.call(Peer("127.0.0.1", server.sockets[0].getsockname()[1]), "x", b"", silence_s=5) as call:
            await anext(call)
    await client.close()
    server.close()
    held[0].transport.abort()


async def test_one_connection_carries_all_calls_to_a_peer(plane):
    async with plane.line(echo) as line:
        await asyncio.gather(*(line.all(b"x") for _ in range(20)))
        assert len(line.server.connections) == 1


async def test_a_forgotten_peer_finishes_its_calls_and_is_let_go(plane, loop):
    """A worker that drains is withdrawn first: what it is answering must not be cut off by that."""
    go = asyncio.Event()

    async def handler(payload):
        yield b"first"
        await go.wait()
        yield b"last"

    async with plane.line(handler) as line, line.call() as call:
        assert await anext(call) == [b"first"]
        line.client.forget(Peer(line.host, line.port))
        assert len(line.server.connections) == 1
        go.set()
        assert await anext(call) == [b"last"]
        with pytest.raises(StopAsyncIteration):
            await anext(call)
        await until(lambda: not line.server.connections, "its last call ended, so the connection is closed")
        assert await line.all() == [b"first", b"last"], "a new call connects anew"


async def test_closing_ends_calls_on_forgotten_peers_too(plane):
    handler = Watched(0)
    async with plane.line(handler) as line:
        task = asyncio.create_task(line.all())
        await until(lambda: handler.started, "the call arrived")
        line.client.forget(Peer(line.host, line.port))
        await line.client.close()
        with pytest.raises(WorkerLost):
            await task


async def test_a_caller_that_leaves_while_its_request_is_being_written_leaves_nothing_behind(plane, loop):
    """Of a block that is not entered, ``__aexit__`` is never called."""
    handler = Watched(0)
    async with plane.line(handler) as line:
        connection = await line.client.connection(Peer(line.host, line.port))
        connection.pause_writing()
        task = asyncio.create_task(line.all(b"picture"))
        await until(lambda: handler.started, "the call arrived")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not connection.calls
        await handler.ended()


async def test_a_call_cancelled_in_the_turn_it_arrives_in_is_forgotten(plane, loop):
    async with plane.line(echo) as line, plane.connected(line.port) as (reader, writer):
        writer.write(HELLO + b"".join(pack_call(n, "work", b"") + pack(Type.CANCEL, n) for n in range(1, 50)))
        writer.write(pack_call(50, "work", b"last"))
        async with asyncio.timeout(SOON_S):
            await reader.readuntil(pack(Type.END, 50))
        (connection,) = line.server.connections
        await until(lambda: not connection._streams, "no stream is kept")


@pytest.mark.event_loop(kind="virtual")
async def test_a_reader_that_pauses_is_not_the_workers_silence(plane):
    """The worker waits for room meanwhile; its time starts when it has some."""
    async with plane.line(count) as line, line.call(b"%d" % (frames.WINDOW + 5), silence_s=5) as call:
        await until(lambda: len(call._items) == frames.WINDOW, "the window is full")
        await asyncio.sleep(8)
        got = await anext(call)
        call._check_silence()  # before the worker can have heard that there is room
        async for batch in call:
            got += batch
        assert len(got) == frames.WINDOW + 5


async def test_a_request_over_the_frame_limit_costs_nobody_else_the_connection(plane, monkeypatch):
    monkeypatch.setattr(frames, "FRAME_LIMIT_BYTES", 10_000)
    async with plane.line(count) as line, line.call(b"3000") as good:
        got = await anext(good)
        with pytest.raises(PayloadTooLarge, match="10,000 bytes"):
            await line.all(bytes(10_001))
        async for batch in good:
            got += batch
        assert len(got) == 3000


@pytest.mark.event_loop(kind="virtual")
async def test_callers_of_a_peer_that_cannot_be_reached_wait_side_by_side(plane, monkeypatch):
    client, loop = plane.client(), asyncio.get_running_loop()

    async def call():
        async with client.call(Peer("127.0.0.1", 1), "work", b"", silence_s=5):
            pass

    async def never(*_, **__):
        await asyncio.Event().wait()

    monkeypatch.setattr(loop, "create_connection", never)
    begun = loop.time()
    answers = await asyncio.gather(*(call() for _ in range(20)), return_exceptions=True)
    assert all(isinstance(one, WorkerLost) for one in answers), answers
    limit_s = USUAL.connect_s
    assert limit_s <= loop.time() - begun < 2 * limit_s, "one time limit for all, not one after another"
    await client.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "worker.example"])
def test_an_address_off_loopback_needs_a_token(host):
    with pytest.raises(ConfigError, match="TRIPTYCH_TOKEN"):
        TcpRequestServer(host, 0, max_in_flight=1)
    TcpRequestServer(host, 0, max_in_flight=1, token="secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_none(host):
    TcpRequestServer(host, 0, max_in_flight=1)


async def test_a_port_that_is_taken_is_one_line(plane):
    async with plane.line(echo) as line:
        second = TcpRequestServer("127.0.0.1", line.port, max_in_flight=1)
        with pytest.raises(ConfigError, match=f"port {line.port} on 127.0.0.1 is taken"):
            await second.start({})
        await second.close()
