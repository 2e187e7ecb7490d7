"""Paths, methods and malformed HTTP: each is answered, and none disturbs the next request."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import random

import pytest
from test_bad_requests import CHAT

from support.deployment import chat_body, deployment
from support.errors import check_error
from support.loops import until_async
from support.raw_http import connected, post, response, send
from triptych.frontend.http import body
from triptych.frontend.openai.chat import endpoint

BODY = json.dumps(chat_body()).encode()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/chat",
        "/v1/chat/completions/",
        "/v2/models",
        "/favicon.ico",
        "/%ff%00",
        "/../etc/passwd",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_paths(demo, method, path):
    error = check_error(demo.http.request(method, path), 404)
    assert error["code"] == "path_not_found"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", CHAT),
        ("PUT", CHAT),
        ("DELETE", "/v1/completions"),
        ("PATCH", "/v1/completions"),
        ("OPTIONS", CHAT),
        ("POST", "/v1/models"),
        ("POST", "/live"),
        ("PUT", "/metrics"),
    ],
)
def test_wrong_methods(demo, method, path):
    answer = demo.http.request(method, path)
    error = check_error(answer, 405)
    assert method in error["message"]
    assert answer.headers["allow"] == ("GET, HEAD" if demo.http.get(path).status_code == 200 else "POST")


@pytest.mark.parametrize("path", ["/live", CHAT, "/nowhere"])
def test_head_gets_no_body_and_leaves_the_connection_usable(demo, path):
    answer = demo.http.head(path)
    same = demo.http.get(path)
    assert answer.status_code == same.status_code
    assert answer.content == b""
    assert answer.headers["content-type"] == same.headers["content-type"]
    assert int(answer.headers["content-length"]) >= len(same.content), "that of the body that it would have had"
    assert demo.http.get("/live").status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/demo", "/ready", "/health", "/metrics", "/openapi.json"])
def test_head_is_wherever_get_is(demo, path):
    answer = demo.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == demo.http.get(path).headers["content-type"]


@pytest.mark.parametrize("path", ["/", "/v1/realtime", "/v1/models", CHAT, "/live"])
def test_a_web_socket_is_refused(demo, path):
    asks = {"connection": "Upgrade", "upgrade": "WebSocket", "sec-websocket-version": "13", "sec-websocket-key": "eA=="}
    error = check_error(demo.http.get(path, headers=asks), 400)
    assert error["code"] == "websocket_not_supported"
    assert "server-sent events" in error["message"]


JSON_KINDS = [
    "application/json",
    "application/json; charset=utf-8",
    'Application/JSON ; charset="UTF-8"',
    "application/vnd.api+json",
    "application/json; profile=x",
]
OTHER_KINDS = [
    "text/plain",
    "text/plain; application/json",
    "text/plain, application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/json; charset=latin-1",
    "application/json; charset=utf-8; charset=utf-16",
    "application/jsonp",
    "+json",
    "",
    "x" * 5_000,
]


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_a_body_that_says_that_it_is_json_is_taken(demo, kind):
    assert demo.http.post(CHAT, content=BODY, headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("kind", OTHER_KINDS, ids=lambda kind: kind[:40])
def test_a_body_that_does_not_is_refused(demo, path, kind):
    """A web page may send it without asking."""
    error = check_error(demo.http.post(path, content=BODY, headers={"content-type": kind}), 415)
    assert error["code"] == "unsupported_content_type"
    assert "application/json" in error["message"]


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("identity, gzip", 415), ("identity", 200), ("", 200)])
def test_a_compressed_body_is_refused_by_name(demo, encoding, status):
    body = json.dumps({"model": "demo", "prompt": "hi"}).encode()
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = demo.http.post(
        "/v1/completions", content=gzip.compress(body) if "gzip" in encoding else body, headers=headers
    )
    assert answer.status_code == status
    if status == 415:
        assert answer.json()["error"]["code"] == "unsupported_content_encoding"


async def test_a_body_of_no_kind_or_two_is_refused(demo):
    async with connected(demo.deployed.port) as (reader, writer):
        request = post(CHAT, BODY)
        for kind in (b"", b"content-type: application/json\r\ncontent-type: text/plain\r\n"):
            writer.write(request.replace(b"content-type: application/json\r\n", kind))
            status, _, body = await response(reader)
            assert (status, json.loads(body)["error"]["code"]) == (415, "unsupported_content_type")
        writer.write(request)
        assert (await response(reader))[0] == 200, "the connection goes on"


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"body_timeout_s": 0.2}, "--body-timeout-s"),
        ({"min_body_bytes_per_s": 1_000_000}, "--min-body-bytes-per-s"),
    ],
)
async def test_a_body_that_never_ends_holds_no_place_and_has_an_end(monkeypatch, settings, flag):
    monkeypatch.setattr(body, "GRACE_S", 0.2)
    async with deployment(frontend={**settings, "max_in_flight": 1}) as d:
        slow = asyncio.create_task(send(d.port, post(CHAT, BODY)[:-1]))

        async def being_read():
            return (await d.http.get("/health")).json()["requests_in_flight"] == 1

        await until_async(being_read, "the body is being read")
        assert (await d.chat()).status_code == 200
        answer = await slow
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert flag.encode() in answer


async def test_a_body_of_many_parts_is_fast_enough(monkeypatch):
    monkeypatch.setattr(body, "GRACE_S", 0.05)
    settings = {"min_body_bytes_per_s": 500}
    async with deployment(frontend=settings) as d, connected(d.port) as (reader, writer):
        request = post(CHAT, BODY)
        for at in range(0, len(request), 16):
            writer.write(request[at : at + 16])
            await asyncio.sleep(0.02)
        assert (await response(reader))[0] == 200


async def test_a_body_shorter_than_it_says():
    """The client goes away before the rest comes: nothing is answered, nothing stays."""
    async with deployment() as d:
        async with connected(d.port) as (_, writer):
            writer.write(post(CHAT, BODY).replace(b"content-length: ", b"content-length: 1"))
            await writer.drain()
        assert (await d.chat()).status_code == 200
        health = (await d.http.get("/health")).json()
        assert health["requests_in_flight"] == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /live HTTP/1.1\r\nhost: x\r\ncontent-length: ten\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}x",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"GET /live HTTP/1.1\r\nbad header\r\n\r\n",
    ],
    ids=lambda data: repr(data[:40]),
)
async def test_malformed_http_gets_400_and_a_closed_connection(demo, request_bytes):
    answer = await send(demo.deployed.port, request_bytes)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert demo.chat().status_code == 200


async def test_random_bytes_harm_nobody(demo):
    rng = random.Random(1)

    async def noise():
        async with connected(demo.deployed.port) as (reader, writer):
            writer.write(rng.randbytes(rng.randrange(1, 2000)))
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 10)

    await asyncio.gather(*(noise() for _ in range(30)))
    assert demo.chat().status_code == 200


async def test_pipelined_requests_are_answered_in_order(demo):
    async with connected(demo.deployed.port) as (reader, writer):
        for word in ("one", "two", "three"):
            writer.write(post(CHAT, json.dumps(chat_body(word)).encode()))
        for word in ("one", "two", "three"):
            status, _, text = await response(reader)
            assert status == 200
            assert json.loads(text)["choices"][0]["message"]["content"] == f"user\n{word}\nassistant\n"


async def test_a_body_over_the_limit_closes_its_connection(short):
    """What is not read must not be taken for the next request."""
    async with connected(short.deployed.port) as (reader, writer):
        writer.write(post(CHAT, b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n" * 3000))
        status, headers, text = await response(reader)
        assert (status, headers["connection"]) == (413, "close")
        assert json.loads(text)["error"]["code"] == "body_too_large"
        assert await reader.read() == b"", "nothing in the body was taken for a request"


async def test_an_error_leaves_the_connection_usable(demo):
    async with connected(demo.deployed.port) as (reader, writer):
        for body, expected in ((b"{", 400), (BODY, 200), (b"[]", 400), (BODY, 200)):
            writer.write(post(CHAT, body))
            assert (await response(reader))[0] == expected


async def test_too_many_requests_at_once_get_429():
    frontend = {"max_in_flight": 3}
    async with deployment(engine_args=("--prefill-ms", "10000"), frontend=frontend) as d:
        waiting = [asyncio.create_task(d.chat()) for _ in range(3)]
        await d.worker.busy(3)
        refused = await d.chat()
        error = check_error(refused, 429)
        assert error["type"] == "rate_limit_error"
        assert "--max-in-flight" in error["message"]
        assert int(refused.headers["retry-after"]) >= 1
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await d.worker.idle()


async def test_a_fault_of_the_server_says_nothing_of_its_inside(monkeypatch):
    async def broken(sampling, processor):
        raise RuntimeError("secret " + os.getcwd())

    monkeypatch.setattr(endpoint, "spell_many", broken)
    async with deployment() as d:
        answer = await d.chat()
        error = check_error(answer, 500)
        assert error["type"] == "internal_error"
        assert "secret" not in answer.text
        assert (await d.complete()).status_code == 200


@pytest.mark.parametrize(
    "piece",
    [b"x" * 16_384, b"x-name: value\r\n" * 1000],
    ids=["one header", "many headers"],
)
async def test_a_head_without_an_end_is_cut_off(piece):
    """Before any API key is looked at: its memory must be bounded."""
    async with deployment() as d, connected(d.http.base_url.port) as (reader, writer):
        writer.write(b"GET /live HTTP/1.1\r\nhost: x\r\nx-name: ")
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    writer.write(piece)
                    await writer.drain()
                    if reader.at_eof():
                        break
                else:
                    pytest.fail("16 MB of headers were taken")
        assert (await d.http.get("/live")).status_code == 200


def test_large_bodies_are_no_heads(demo):
    body = json.dumps({**chat_body(), "padding": "x" * 1_000_000}).encode()
    assert demo.http.post("/v1/chat/completions", content=body).status_code == 200
    pieces = [body[at : at + 997] for at in range(0, len(body), 997)]
    assert demo.http.post("/v1/chat/completions", content=iter(pieces)).status_code == 200
