"""The load generator is correct; whatever it miscounts, the benchmark would misreport."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from benchmarks.load import Request, run_load
from benchmarks.measure import Record, summarise
from benchmarks.sse import ProtocolError, ResponseParser, has_text, is_error, usage_tokens

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ASK = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


def chunk(text: str) -> bytes:
    data = text.encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def delta(text: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}]}, separators=(",", ":"))


USAGE = json.dumps({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}})
EVENTS = [delta(""), delta("a"), delta('"content":'), delta("é\n\nx"), USAGE, "[DONE]"]
ANSWER = HEAD + b"".join(chunk(f"data: {event}\n\n") for event in EVENTS) + b"0\r\n\r\n"
COALESCED = HEAD + chunk("".join(f"data: {event}\n\n" for event in EVENTS)) + b"0\r\n\r\n"


def parse(pieces: list[bytes]) -> tuple[list[str], ResponseParser]:
    parser = ResponseParser()
    return [event.decode() for piece in pieces for event in parser.feed(piece)], parser


@pytest.mark.parametrize("answer", [ANSWER, COALESCED, ANSWER.replace(b"\r\n0\r\n", b"\r\n0;ext=1\r\n")])
def test_the_same_events_wherever_the_bytes_are_cut(answer: bytes) -> None:
    for cut in range(len(answer) + 1):
        events, parser = parse([answer[:cut], answer[cut:]])
        assert events == EVENTS, f"cut at {cut}"
        assert parser.complete
        assert parser.status == 200
    events, parser = parse([answer[i : i + 1] for i in range(len(answer))])
    assert events == EVENTS
    assert parser.complete


def test_events_may_span_chunks_of_http() -> None:
    text = "".join(f"data: {event}\n\n" for event in EVENTS)
    body = b"".join(chunk(text[i : i + 7]) for i in range(0, len(text), 7))
    events, parser = parse([HEAD + body + b"0\r\n\r\n"])
    assert events == EVENTS
    assert parser.complete


def test_other_spellings_of_events() -> None:
    odd = ": comment\r\n\r\nevent: error\r\ndata: one\r\ndata: two\r\n\r\ndata:three\r\n\r\n"
    events, _ = parse([HEAD + chunk(odd[:30]) + chunk(odd[30:]) + b"0\r\n\r\n"])
    assert events == ["one\ntwo", "three"]


def test_a_body_of_known_length_and_one_up_to_the_close() -> None:
    events, parser = parse([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndata: a", b"\n\n"])
    assert (events, parser.complete, parser.keep_alive) == (["a"], True, True)
    events, parser = parse([b"HTTP/1.1 200 OK\r\n\r\ndata: a\n\n"])
    assert (events, parser.complete, parser.keep_alive) == (["a"], False, False)
    parser.end()
    assert parser.complete


def test_what_is_not_http_is_refused() -> None:
    with pytest.raises(ProtocolError):
        ResponseParser().feed(b"hello\r\n\r\n")
    with pytest.raises(ProtocolError):
        ResponseParser().feed(HEAD + b"zz\r\nx\r\n")


def test_kinds_of_events_are_told_apart() -> None:
    assert has_text(delta("a").encode())
    assert has_text(b'{"choices":[{"delta":{"content": "a"}}]}')
    assert not has_text(delta("").encode())
    assert not has_text(b'{"choices":[{"delta":{"content":null}}]}')
    assert not has_text(b'{"choices":[{"delta":{"role":"assistant","content": ""}}]}')
    assert is_error(b'{"error":{"message":"x"}}')
    assert not is_error(USAGE.encode())
    assert usage_tokens(USAGE.encode()) == 3
    assert usage_tokens(delta("a").encode()) == 0


@asynccontextmanager
async def server(answer_of: Callable[[int], bytes], *, step: int = 13) -> AsyncIterator[str]:
    """Answers the n-th request with ``answer_of(n)``, in pieces; an answer ending in CUT closes at once."""
    served = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        try:
            while True:
                await reader.readexactly(len(ASK))
                answer = answer_of(served)
                served += 1
                data = answer.removesuffix(b"CUT")
                for place in range(0, len(data), step):
                    writer.write(data[place : place + step])
                    await writer.drain()
                if answer.endswith(b"CUT"):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


def load(answer_of: Callable[[int], bytes], count: int = 1, limit_s: float = 10.0) -> list[Record]:
    async def main() -> list[Record]:
        async with server(answer_of) as url:
            records, _ = await run_load(url, [Request(ASK, 3)] * count, 2, limit_s)
            return records

    return uvloop.run(main())


def test_a_good_answer_is_counted_by_its_usage() -> None:
    records = load(lambda _: ANSWER, count=5)
    assert [record.error for record in records] == [""] * 5
    assert all(record.tokens == 3 and len(record.stamps) == 3 for record in records)
    summary = summarise(records, 1.0, {"server": 0.5}, 0.1)
    assert (summary.failed, summary.requests_per_s, summary.tokens_per_s) == (0, 5, 15)
    assert summary.cpu_ms_per_request == 100
    assert summary.ttft_ms["p50"] > 0


def test_without_usage_the_events_are_counted() -> None:
    (record,) = load(lambda _: ANSWER.replace(chunk(f"data: {USAGE}\n\n"), b""))
    assert (record.error, record.tokens) == ("", 3)


def test_a_status_other_than_200_is_an_error_and_the_connection_goes_on() -> None:
    refusal = b'HTTP/1.1 429 Too Many\r\nContent-Length: 11\r\n\r\n{"error":1}'
    records = load(lambda n: refusal if n == 0 else ANSWER, count=4)
    assert sorted(record.error for record in records) == ["", "", "", 'HTTP 429: {"error":1}']


def test_an_error_event_is_an_error() -> None:
    answer = HEAD + chunk(f"data: {delta('a')}\n\n") + chunk('data: {"error":{"message":"died"}}\n\n')
    (record,) = load(lambda _: answer + chunk("data: [DONE]\n\n") + b"0\r\n\r\n")
    assert "died" in record.error


def test_an_early_close_is_an_error_and_the_next_request_gets_a_new_connection() -> None:
    records = load(lambda n: ANSWER[:200] + b"CUT" if n == 0 else ANSWER, count=4)
    assert sorted(record.error for record in records) == ["", "", "", "connection closed early"]


def test_an_answer_without_its_end_mark_is_an_error() -> None:
    (record,) = load(lambda _: ANSWER.replace(chunk("data: [DONE]\n\n"), b""))
    assert record.error == "no [DONE] at the end"


def test_fewer_tokens_than_requested_are_an_error() -> None:
    (record,) = load(lambda _: ANSWER.replace(b'"completion_tokens": 3', b'"completion_tokens": 2'))
    assert record.error == "2 tokens instead of 3"


def test_a_silent_server_is_given_up_and_every_request_counted() -> None:
    records = load(lambda _: b"", count=5, limit_s=0.2)
    assert sorted(record.error for record in records) == ["not answered in time"] * 2 + ["not sent in time"] * 3
