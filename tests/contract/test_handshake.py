"""Whoever listens in the place of a worker learns neither the token nor a request, and cannot use what it hears."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
from test_request_plane import echo

from support.loops import until
from triptych.contracts.errors import WorkerLost
from triptych.planes.request import handshake
from triptych.planes.request.base import Peer
from triptych.planes.request.frames import HEADER, VERSION, Challenge, Hello, Type, pack, pack_call
from triptych.planes.request.handshake import key_of, proof
from triptych.planes.request.tcp_client import TcpRequestClient

TOKEN = "a token of the run that is long enough"


async def frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    size, kind, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
    return kind, await reader.readexactly(size)


@asynccontextmanager
async def squatter(answer: Callable[[Hello], Challenge], heard: bytearray):
    """A listener that answers HELLO with a challenge of its own making and keeps all that it hears; its port."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, payload = await frame(reader)
        heard.extend(payload)
        challenge = answer(msgspec.msgpack.decode(payload, type=Hello))
        assert kind == Type.HELLO
        writer.write(pack(Type.CHALLENGE, 0, msgspec.msgpack.encode(challenge)))
        with suppress(ConnectionResetError):
            while data := await reader.read(1000):
                heard.extend(data)
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


GUESSED = {
    "no proof": lambda hello: Challenge(b"n" * 16),
    "the nonce back": lambda hello: Challenge(hello.nonce, hello.nonce),
    "another token": lambda hello: Challenge(b"n" * 16, proof(key_of("guess"), "server", hello, b"n" * 16)),
    "a client's proof": lambda hello: Challenge(b"n" * 16, proof(key_of(TOKEN), "client", hello, b"n" * 16)),
    "of another worker": lambda hello: Challenge(
        b"n" * 16, proof(key_of(TOKEN), "server", Hello(VERSION, hello.nonce, "b.2"), b"n" * 16)
    ),
    "of another time": lambda hello: Challenge(
        b"n" * 16, proof(key_of(TOKEN), "server", Hello(VERSION, b"o" * 16, hello.to), b"n" * 16)
    ),
}


@pytest.mark.parametrize("answer", GUESSED.values(), ids=GUESSED)
async def test_a_peer_without_the_token_learns_nothing(answer: Callable[[Hello], Challenge]) -> None:
    heard = bytearray()
    client = TcpRequestClient(TOKEN)
    async with squatter(answer, heard) as port:
        with pytest.raises(WorkerLost, match="does not know the token"):
            async with client.call(Peer("127.0.0.1", port, "a.1"), "work", b"the prompt", silence_s=5):
                raise AssertionError("the call must not begin")
        await client.close()
    assert b"the prompt" not in heard
    assert TOKEN.encode() not in heard


async def test_a_worker_that_knows_the_token_is_spoken_to() -> None:
    heard = bytearray()
    client = TcpRequestClient(TOKEN)

    def right(hello: Hello) -> Challenge:
        return Challenge(b"n" * 16, proof(key_of(TOKEN), "server", hello, b"n" * 16))

    async with squatter(right, heard) as port:
        async with client.call(Peer("127.0.0.1", port, "a.1"), "work", b"the prompt", silence_s=5):
            await until(lambda: b"the prompt" in heard, "the call arrives")
        await client.close()
    assert TOKEN.encode() not in heard


async def test_a_proof_is_good_for_one_connection(plane) -> None:
    async with plane.line(echo, token=TOKEN, client_token=TOKEN) as line:
        used = b""
        for _ in range(2):
            async with plane.connected(line.port) as (reader, writer):
                hello = Hello(VERSION, b"c" * 16)
                writer.write(pack(Type.HELLO, 0, msgspec.msgpack.encode(hello)))
                kind, payload = await frame(reader)
                assert kind == Type.CHALLENGE
                challenge = msgspec.msgpack.decode(payload, type=Challenge)
                assert challenge.proof == proof(key_of(TOKEN), "server", hello, challenge.nonce)
                is_first = not used
                used = used or proof(key_of(TOKEN), "client", hello, challenge.nonce)
                writer.write(pack(Type.PROOF, 0, used) + pack_call(1, "work", b"x"))
                said = await reader.read(1)
                assert bool(said) == is_first, "said again, it is worth nothing"
        assert await line.all(b"x") == [b"x"]


def test_a_short_token_costs_its_guesser_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(key_of("short") or b"") == 32
    assert key_of("short") != key_of("other")
    monkeypatch.setattr(handshake, "_SALT", b"another")
    assert handshake.key_of.__wrapped__(TOKEN) != key_of(TOKEN)
    assert key_of(None) is None
