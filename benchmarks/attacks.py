"""Runs hostile clients, by name. Each runs for a limited time, and counts the answers that it got."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from benchmarks.frontend_only import words

Answers = Counter[str]
MIB = 1 << 20
ANSWER_LIMIT_S = 60.0


def _chat(messages: str, more: str = "") -> bytes:
    return f'{{"model": "instant", "max_tokens": 1, {more}"messages": {messages}}}'.encode()


def _user(content: str) -> str:
    return f'{{"role":"user","content":{content}}}'


def _many(count: int, piece: str) -> str:
    return "[" + ",".join([piece] * count) + "]"


def _honest(seed: int) -> bytes:
    """Returns a text of a megabyte, of words that are not in the order of any other."""
    rng = random.Random(seed)
    vocabulary = words()
    text = "".join(rng.choices(vocabulary, k=MIB // 6))[:MIB]
    return _chat(f"[{_user(json.dumps(text))}]")


_PICTURE = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}'
_TOOL = json.dumps({"type": "function", "name": "abcdefghi", "x": 1})
BODIES: dict[str, Callable[[int], bytes]] = {
    "20,000 empty messages": lambda _: _chat(_many(20_000, _user('""'))),
    "2,000,000 empty messages": lambda _: _chat(_many(2_000_000, _user('""'))),
    "a role of 50 MB": lambda _: _chat(f'[{{"role": "{"r" * 50_000_000}", "content": ""}}]'),
    "100,000 media parts": lambda _: _chat(f"[{_user(_many(100_000, _PICTURE))}]"),
    "chat_template_kwargs of 29 MB": lambda _: _chat(
        f"[{_user(json.dumps('x'))}]", f'"chat_template_kwargs": {{"tools": {_many(500_000, _TOOL)}}}, '
    ),
    "one text of 60 MB": lambda _: _chat(f"[{_user(json.dumps('word ' * 12_000_000))}]"),
    "nested 10,000,000 deep": lambda _: _chat("[" * 10_000_000),
    "60,000,000 quotation marks": lambda _: b'"' * 60_000_000,
    "15,000,000 names without values": lambda _: b'{"x":' + b'"a":' * 15_000_000,
    "1,024 choices with log probabilities": lambda _: json.dumps(
        {
            "model": "instant",
            "prompt": [f"{number} is a number" for number in range(64)],
            "n": 16,
            "max_tokens": 100,
            "ignore_eos": True,
            "logprobs": 20,
        }
    ).encode(),
    "20,000,000 token ids": lambda _: (
        b'{"model": "instant", "max_tokens": 1, "prompt": [' + b"7," * 20_000_000 + b"7]}"
    ),
    "one letter, a megabyte": lambda _: _chat(f"[{_user(json.dumps('a' * MIB))}]"),
    "an honest megabyte": _honest,
}
AT_ONCE = {"an honest megabyte": 8}


async def _post(host: str, port: int, body: bytes) -> str:
    """Returns the status of the answer, or the error."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    if b'"prompt"' in body[:200]:
        head = head.replace("/chat", "")
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode())
                writer.write(body)
                line = await reader.readline()
                await reader.read()
            finally:
                writer.transport.abort()
        return line.split()[1].decode() if line else "closed"
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return type(error).__name__


def _posting(name: str) -> Callable[[str, float], Awaitable[Answers]]:
    """Returns an attack of clients that post the bodies ``name`` again and again, each one after another."""

    async def run(url: str, seconds: float) -> Answers:
        host, port = _address(url)
        answers: Answers = Counter()
        at_once = AT_ONCE.get(name, 1)
        ready = [BODIES[name](seed) for seed in range(at_once)]
        until = time.perf_counter() + seconds

        async def client(body: bytes) -> None:
            while time.perf_counter() < until:
                answers[await _post(host, port, body)] += 1

        await asyncio.gather(*map(client, ready))
        return answers

    return run


def _address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


async def silent(url: str, seconds: float) -> Answers:
    """Opens 400 connections that send nothing or half a head, or that stay after their request."""
    openings = (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n", b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
    return await _held(url, 400, seconds, iter(openings * 134))


async def stalled(url: str, seconds: float) -> Answers:
    """Runs 64 clients that ask for long streamed answers and read nothing."""
    body = json.dumps(
        {
            "model": "instant",
            "messages": [{"role": "user", "content": "say it"}],
            "max_tokens": 100_000,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    return await _held(url, 64, seconds, iter([request] * 64))


async def _held(url: str, count: int, seconds: float, openings: Iterator[bytes]) -> Answers:
    """Opens ``count`` connections that send ``openings``, read nothing, and stay for ``seconds``."""
    address = _address(url)
    loop = asyncio.get_running_loop()
    answers: Answers = Counter()
    held = []
    for _ in range(count):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        try:
            async with asyncio.timeout(5):
                await loop.sock_connect(client, address)
                await loop.sock_sendall(client, next(openings))
            answers["opened"] += 1
        except (OSError, TimeoutError) as error:
            answers[type(error).__name__] += 1
        held.append(client)
    await asyncio.sleep(seconds)
    for client in held:
        client.close()
    return answers


ATTACKS: dict[str, Callable[[str, float], Awaitable[Answers]]] = {
    **{name: _posting(name) for name in BODIES},
    "400 silent connections": silent,
    "64 stalled readers": stalled,
}
