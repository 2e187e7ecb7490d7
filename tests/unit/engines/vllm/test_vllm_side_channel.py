"""NIXL's side channel: readers are answered by a REQ socket of ZMQ's own, whatever others send meanwhile."""

from __future__ import annotations

import random
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from triptych.engines.vllm import side_channel
from triptych.engines.vllm.side_channel import GET_META, MAX_CONNECTIONS, SideChannel

zmq = pytest.importorskip("zmq")
METADATA = {(0, 0): b"first" * 1000, (0, 1): b"second"}
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ"
LISTENER = {"127.0.0.1": "127.0.0.1", "::1": "[::1]"}


@pytest.fixture
def channel() -> Iterator[SideChannel]:
    one = SideChannel("127.0.0.1", 0, METADATA)
    yield one
    one.close()
    one.close()


@contextmanager
def reader(channel: SideChannel, host: str = "127.0.0.1") -> Iterator[zmq.Socket[bytes]]:
    """As vLLM makes it."""
    context = zmq.Context()
    try:
        one = context.socket(zmq.REQ)
        one.set(zmq.RCVTIMEO, 5000)
        one.connect(f"tcp://{host}:{channel.port}")
        yield one
    finally:
        context.destroy(linger=0)


def answered(channel: SideChannel) -> None:
    with reader(channel) as one:
        for rank, expected in METADATA.items():
            one.send(msgspec.msgpack.encode((GET_META, *rank)))
            metadata, now = one.recv_multipart()
            assert metadata == expected
            assert isinstance(msgspec.msgpack.decode(now), float)


def spoken(channel: SideChannel, data: bytes) -> bytes:
    """What comes until the connection is closed from there."""
    heard = b""
    with suppress(ConnectionError), connected(channel) as one:
        one.sendall(data)
        while part := one.recv(65536):
            heard += part
    return heard


def connected(channel: SideChannel) -> socket.socket:
    return socket.create_connection(("127.0.0.1", channel.port), timeout=5)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def frame(body: bytes, flags: int = 0) -> bytes:
    return bytes([flags, len(body)]) + body


ASK = msgspec.msgpack.encode((GET_META, 0, 0))
BAD = {
    "nothing of the kind": b"GET / HTTP/1.1\r\n\r\n" * 10,
    "noise": random.Random(1).randbytes(5000),
    "an older version": b"\xff" + bytes(8) + b"\x7f\x01\x00" + bytes(60),
    "another mechanism": GREETING.replace(b"NULL", b"CURV"),
    "no word of being ready": GREETING + frame(b"\x05HELLO", 4),
    "a question before that": GREETING + frame(b"", 1) + frame(ASK),
    "a huge frame": GREETING + READY + b"\x02" + (1 << 62).to_bytes(8, "big"),
    "a long frame": GREETING + READY + b"\x02" + (257).to_bytes(8, "big") + bytes(257),
    "many parts": GREETING + READY + frame(b"", 1) + frame(b"", 1) * 1000,
    "one part": GREETING + READY + frame(ASK),
    "no msgpack": GREETING + READY + frame(b"", 1) + frame(b"\xc1"),
    "other types": GREETING + READY + frame(b"", 1) + frame(msgspec.msgpack.encode(["a", {}, 0])),
    "another word": GREETING + READY + frame(b"", 1) + frame(msgspec.msgpack.encode((b"give_me", 0, 0))),
    "a rank that is not there": GREETING + READY + frame(b"", 1) + frame(msgspec.msgpack.encode((GET_META, 0, 9))),
    "a negative rank": GREETING + READY + frame(b"", 1) + frame(msgspec.msgpack.encode((GET_META, -(1 << 63), 0))),
    "unknown flags": GREETING + READY + b"\xf8\x00",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_end_their_connection_only(channel: SideChannel, name: str) -> None:
    heard = spoken(channel, BAD[name])
    assert METADATA[0, 0] not in heard
    assert METADATA[0, 1] not in heard
    answered(channel)


def test_all_that_is_right_up_to_any_byte(channel: SideChannel) -> None:
    """Cut off anywhere, and answered where nothing is missing."""
    whole = GREETING + READY + frame(b"", 1) + frame(ASK)
    for end in (0, 1, 10, 11, 63, 64, 70, len(whole) - 1):
        with connected(channel) as one:
            one.sendall(whole[:end])
    with connected(channel) as one:
        one.sendall(whole)
        heard = b""
        while METADATA[0, 0] not in heard:
            heard += one.recv(65536)
    answered(channel)


def test_a_thousand_connections_hold_nobody_up(channel: SideChannel) -> None:
    """Silent ones, and others that have said all but a question."""
    before = resident_bytes()
    with ExitStack() as stack:
        for number in range(1000):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", channel.port))
            if number % 2:
                with suppress(OSError):
                    one.send(GREETING + READY)
        answered(channel)
        assert len(channel._connections) <= MAX_CONNECTIONS
        assert resident_bytes() - before < 16 << 20
    answered(channel)


def test_a_peer_that_reads_nothing_holds_little(channel: SideChannel) -> None:
    """Questions without end from a reader that never reads: they are not read any more."""
    before = resident_bytes()
    with connected(channel) as one:
        one.settimeout(0.2)
        with suppress(OSError):
            one.sendall(GREETING + READY + (frame(b"", 1) + frame(ASK)) * 200_000)
        answered(channel)
        assert resident_bytes() - before < 16 << 20


def test_a_connection_has_a_time_limit(monkeypatch: pytest.MonkeyPatch, channel: SideChannel) -> None:
    monkeypatch.setattr(side_channel, "CONNECTION_S", 0.05)
    assert spoken(channel, GREETING[:20]) == GREETING
    assert spoken(channel, GREETING + READY).startswith(GREETING)


def test_ipv6_and_a_port_that_is_taken() -> None:
    one = SideChannel("::1", 0, METADATA)
    with reader(one, "[::1]") as asking:
        asking.set(zmq.IPV6, 1)
    one.close()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        SideChannel("127.0.0.1", taken.getsockname()[1], METADATA)


def test_closing_ends_its_thread_and_connections() -> None:
    one = SideChannel("127.0.0.1", 0, METADATA)
    with connected(one) as open_one:
        assert open_one.recv(1) == GREETING[:1]
        one.close()
        with suppress(ConnectionError):
            while open_one.recv(100):
                pass
    assert "nixl side channel" not in {thread.name for thread in threading.enumerate()}
