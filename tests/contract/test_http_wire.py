"""HTTP/1.1 as clients may speak it: pipelines, expectations, trailers, upgrades and malformed input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest

from support.http_server import get, served
from support.loops import until
from support.raw_http import connected, post, response, send
from triptych.aio.pace import pace
from triptych.frontend.http.connection import MAX_PIPELINED
from triptych.frontend.http.exchange import Exchange
from triptych.frontend.http.parsing import MAX_HEADERS, Parser
from triptych.frontend.http.server import BODY_BYTES, SCRATCH_BYTES


async def test_malformed_http_is_answered_as_json():
    async with served() as s:
        answer = await send(s.port, b"nonsense\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-type: application/json" in head
        error = json.loads(body)["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "malformed_http")
        assert s.counts.malformed == 1


async def test_malformed_bytes_after_a_request_do_not_reach_its_answer():
    async with served() as s, connected(s.port) as (reader, writer):
        writer.write(get("/slow"))
        await reader.readuntil(b"one\r\n")
        writer.write(b"nonsense\r\n\r\n" * 3)
        async with connected(s.port) as (other, going):
            going.write(get("/go"))
            await response(other)
        assert await reader.read() == b"3\r\ntwo\r\n0\r\n\r\n", "the answer ends, then the connection"


async def test_a_client_that_leaves_with_pipelined_requests_is_noticed():
    """The request that is being answered is cancelled, although a later one was being read."""
    async with served() as s:
        async with connected(s.port) as (_, writer):
            writer.write(get("/waits") + get("/a") * 3)
            await until(lambda: s.seen, "the first is being answered")
            writer.write(get("/a") * 100)
        await until(lambda: s.left == 1, "it hears that its client is gone")
        assert len(s.seen) == 1


@pytest.mark.parametrize("at_once", [True, False])
async def test_pipelined_requests_are_bounded_and_answered_in_order(at_once):
    async with served() as s, connected(s.port) as (reader, writer):
        requests = [get(f"/{number}") for number in range(3 * MAX_PIPELINED)]
        if at_once:
            writer.write(b"".join(requests))
        else:
            for one in requests:
                writer.write(one)
                await writer.drain()
        answered = 0
        while not reader.at_eof() and answered < len(requests):
            try:
                _, _, body = await response(reader)
            except EOFError:
                break
            assert json.loads(body)["path"] == f"/{answered}"
            answered += 1
        assert answered >= MAX_PIPELINED


async def test_a_body_that_expects_100_continue_is_asked_for():
    async with served() as s, connected(s.port) as (reader, writer):
        head, body = post("/a", b"body", "expect: 100-continue").split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert json.loads((await response(reader))[2])["body"] == "body"


async def test_a_body_that_was_not_asked_for_closes_the_connection():
    """It is unknown whether the body will come: later bytes must not be taken for it, nor it for a request."""
    async with served() as s, connected(s.port) as (reader, writer):
        writer.write(get("/refused", "content-length: 5", "expect: 100-continue"))
        status, headers, _ = await response(reader)
        assert (status, headers["connection"]) == (200, "close")
        writer.write(get("/a"))
        assert await reader.read() == b""
        assert len(s.seen) == 1


async def test_a_late_body_is_discarded_and_the_connection_goes_on():
    async with served() as s, connected(s.port) as (reader, writer):
        writer.write(get("/refused", "content-length: 5"))
        assert (await response(reader))[2] == b"no"
        writer.write(b"GET /" + get("/a"))
        assert json.loads((await response(reader))[2])["path"] == "/a"


@pytest.mark.parametrize("form", ["stated", "chunked"])
async def test_a_large_body_that_the_application_does_not_take_is_discarded(form):
    size = 4 * BODY_BYTES
    if form == "stated":
        whole = get("/refused", f"content-length: {size}") + b"x" * size
    else:
        chunk = b"%x\r\n%b\r\n" % (BODY_BYTES, b"x" * BODY_BYTES)
        whole = get("/refused", "transfer-encoding: chunked") + chunk * 4 + b"0\r\n\r\n"
    async with served() as s:
        answer = await send(s.port, whole + get("/a", "connection: close"), limit_s=5)
        assert answer.count(b"HTTP/1.1 200") == 2
        assert [one["path"] for one in s.seen] == ["/refused", "/a"]


async def test_a_discarded_body_is_read_at_the_pace_of_all_bodies():
    size = 64 * BODY_BYTES
    async with served() as s, connected(s.port) as (reader, writer):
        spent, spend = [], pace().spend

        def counting(size_bytes):
            spent.append(size_bytes)
            return spend(size_bytes)

        pace().spend = counting
        writer.write(get("/refused", f"content-length: {size}") + b"x" * size + get("/a", "connection: close"))
        assert (await reader.read()).count(b"HTTP/1.1 200") == 2
        assert sum(spent) > size // 2


async def test_trailers_are_not_headers():
    async with served() as s, connected(s.port) as (reader, writer):
        writer.write(
            b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            b"2\r\nhi\r\n0\r\nauthorization: Bearer stolen\r\n\r\n"
        )
        answer = json.loads((await response(reader))[2])
        assert answer["body"] == "hi"
        assert "authorization" not in answer["headers"]
        writer.write(get("/b"))
        assert json.loads((await response(reader))[2])["path"] == "/b"


async def test_trailers_without_an_end_are_cut_off():
    async with served() as s:
        head = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
        answer = await send(s.port, head + b"a: b\r\n" * 50_000)
        assert not answer or answer.startswith(b"HTTP/1.1 400 ")


async def test_an_upgrade_to_an_unknown_protocol_is_ignored():
    """As ``curl --http2`` asks for one."""
    upgrade = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")
    async with served() as s, connected(s.port) as (reader, writer):
        for _ in range(2):
            writer.write(post("/a", b"body", *upgrade) + get("/b", *upgrade))
            assert json.loads((await response(reader))[2])["body"] == "body"
            assert json.loads((await response(reader))[2])["path"] == "/b"
        assert len(s.seen) == 4


UPGRADE = "connection: upgrade\r\nupgrade: h2c\r\n"
SECOND = b"GET /second HTTP/1.1\r\nhost: x\r\n\r\n"


def asking(method: str, *lines: str, version: str = "1.1", path: str = "/a") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "host: x", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("request_bytes", "body"),
    [
        (asking("POST", "content-length: 6", UPGRADE[:-2]) + b"body12", "body12"),
        (
            asking("POST", "transfer-encoding: chunked", UPGRADE[:-2]) + b"3\r\nbod\r\n3\r\ny12\r\n0\r\nx: y\r\n\r\n",
            "body12",
        ),
        (asking("POST", "content-length: 0", UPGRADE[:-2]), ""),
        (asking("GET", UPGRADE[:-2]), ""),
        (asking("GET", "connection: keep-alive, upgrade", "upgrade: websocket"), ""),
        (asking("POST", "upgrade: h2c", "content-length: 6") + b"body12", "body12"),
    ],
    ids=["length", "chunks", "empty", "none", "websocket", "not asked for"],
)
async def test_a_request_gets_one_answer_whatever_protocol_it_asks_for(request_bytes, body):
    """This holds wherever the bytes are cut in two. The request behind it is a separate one."""
    async with served() as s:
        for at in range(1, len(request_bytes), 5):
            s.seen.clear()
            async with connected(s.port) as (reader, writer):
                writer.write(request_bytes[:at])
                await asyncio.sleep(0)
                writer.write(request_bytes[at:] + SECOND)
                first, second = [json.loads((await response(reader))[2]) for _ in range(2)]
            assert (first["path"], first["body"], second["path"]) == ("/a", body, "/second")
            assert len(s.seen) == 2


@pytest.mark.parametrize("upgrade", ["", UPGRADE], ids=["plain", "upgrade"])
@pytest.mark.parametrize(
    "framing",
    [
        "transfer-encoding: gzip",
        "transfer-encoding: identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 5\r\ntransfer-encoding: chunked",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: +5",
        "content-length: 5x",
        "content-length: 5, 5",
    ],
)
async def test_a_body_that_may_be_read_in_two_ways_is_refused(framing, upgrade, caplog):
    """The bytes behind it are not taken for a request, and the application does not see the first."""
    async with served() as s:
        answer = await send(s.port, asking("POST", framing, *upgrade.split("\r\n")[:-1]) + b"0\r\n\r\n" + SECOND)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
        assert not s.seen
    assert "ERROR" not in {record.levelname for record in caplog.records}


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0", "HTTP/2 (prior knowledge)"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "ask by http://"),
        (asking("GET", version="2.0"), "not HTTP/2.0"),
        (asking("CONNECT", path="a.example:443"), "no proxy"),
        (asking("GET", "host: y"), "two different Host"),
        (asking("BREW"), "not well-formed"),
    ],
)
async def test_a_client_of_another_protocol_is_told_what_to_do(sent, words):
    async with served() as s:
        head, _, body = (await send(s.port, sent)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-type: application/json" in head
        assert words in json.loads(body)["error"]["message"]
        assert not s.seen


async def test_http_1_0_gets_no_chunked_answer():
    async with served() as s:
        async with connected(s.port) as (reader, writer):
            writer.write(get("/slow", version="1.0"))
            async with connected(s.port) as (_, other):
                other.write(get("/go"))
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert body == b"onetwo"


async def test_an_application_that_fails_is_answered(caplog):
    async with served() as s:
        answer = await send(s.port, get("/broken"))
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b'"internal_error"' in answer


@pytest.mark.parametrize("method", ["CONNECT x:443", "OPTIONS *", "PRI *", "GET http://x/a", "GET /a?b=c#d"])
async def test_odd_targets_are_answered(method):
    async with served() as s:
        answer = await send(s.port, f"{method} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))


async def test_random_bytes_in_requests_do_no_harm(caplog):
    """Requests are cut, doubled and changed: every answer is HTTP, and the server goes on."""
    rng = random.Random(7)
    whole = post("/a", b"body", "expect: 100-continue") + get("/refused", "content-length: 3") + b"abc" + get("/b")
    chunked = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\na: b\r\n\r\n"
    upgrade = get("/b", "connection: upgrade", "upgrade: h2c")
    async with served(head_timeout_s=0.2, keep_alive_timeout_s=0.2) as s:

        async def one():
            data = bytearray(rng.choice((whole, chunked, upgrade, whole + chunked + upgrade)))
            for _ in range(rng.randrange(4)):
                at = rng.randrange(len(data))
                data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
            answers = b""
            async with connected(s.port) as (reader, writer):
                for at in range(0, len(data), step := rng.choice((1000, 40, 7))):
                    if not writer.transport.is_closing():
                        writer.write(data[at : at + step])
                    await asyncio.sleep(0)
                with contextlib.suppress(TimeoutError, ConnectionError):  # the rest of a body may be waited for
                    async with asyncio.timeout(0.3):
                        answers = await reader.read()
                assert not answers or answers.startswith(b"HTTP/1.1 ")

        for _ in range(8):
            await asyncio.gather(*(one() for _ in range(40)))
        await until(lambda: s.open == 0, "no connection is kept")
    assert not caplog.records, "the server met nothing that it did not expect"


@pytest.mark.parametrize("place", ["head", "trailers"])
async def test_headers_are_counted(place):
    many = b"a: b\r\n" * (MAX_HEADERS + 2)
    head = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
    async with served() as s:
        answer = await send(s.port, (b"GET /a HTTP/1.1\r\n" if place == "head" else head) + many)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"head_too_large"' in answer


async def test_bodies_in_one_byte_chunks_leave_time_to_others(monkeypatch):
    """With several such bodies at once, no turn of the loop reads many thousands of chunks."""
    count, taken = 60_000, 0
    feed = Exchange.feed

    def counted(self, part):
        nonlocal taken
        taken += 1
        feed(self, part)

    monkeypatch.setattr(Exchange, "feed", counted)
    request = (
        b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * count + b"0\r\n\r\n"
    )
    async with served() as s, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(s.port)) for _ in range(8)]
        for _, writer in clients:
            writer.write(request)
        answers = asyncio.gather(*(response(reader) for reader, _ in clients))
        before, most = taken, []
        while not answers.done():
            await asyncio.sleep(0)
            most.append(taken - before)
            before = taken
        for _, _, body in await answers:
            assert json.loads(body)["body"] == "a" * count
        assert sorted(most)[-9] <= 4 * (SCRATCH_BYTES // 6 + 1), "of later turns, four reads are the most"


async def test_a_body_of_stated_length_is_read_in_large_pieces_and_one_in_chunks_is_not(monkeypatch):
    given = []
    feed = Parser.feed
    monkeypatch.setattr(Parser, "feed", lambda self, data: (given.append(len(data)), feed(self, data))[1])
    stated = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 600000\r\n\r\n" + b"a" * 600_000
    chunked = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"30000\r\n%b\r\n" % (
        b"a" * 0x30000
    )
    async with served() as s:
        for request, size, most in (
            (stated, 600_000, BODY_BYTES),
            (chunked + b"0\r\n\r\n", 0x30000, SCRATCH_BYTES),
        ):
            given.clear()
            async with connected(s.port) as (reader, writer):
                writer.write(request)
                _, _, body = await response(reader)
                assert json.loads(body)["body"] == "a" * size
            assert max(given) <= most
            assert max(given[1:]) > SCRATCH_BYTES or most == SCRATCH_BYTES
