"""A ZMQ publisher's port under strangers: what they can make it hold."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import sys
from pathlib import Path

import pytest

from support.carriers import quick_carrier
from support.instances import instance
from support.loops import until
from support.speakers import Speaker, listening
from triptych.planes.events import zmq_listener
from triptych.planes.events.zeromq import ZmqReceiver

MIB = 1 << 20
FLOOD = """
import os, sys, time, zmq
context = zmq.Context()
one = context.socket(zmq.XSUB)
one.set(zmq.LINGER, 0)
one.set(zmq.SNDHWM, 0)
if len(sys.argv) > 2:
    one.curve_publickey, one.curve_secretkey = zmq.curve_keypair()
    one.curve_serverkey = zmq.curve_keypair()[0]
one.connect(f"tcp://127.0.0.1:{sys.argv[1]}")
end = time.monotonic() + 2
for number in range(100_000):
    one.send(b"\\x01" + number.to_bytes(4, "big") * 900)
    if number % 10 == 0:
        time.sleep(0.001)
    if time.monotonic() > end:
        break
os._exit(0)  # what has not been sent yet is let go
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_listener, "HANDSHAKE_S", 0.3)


def port_of(speaker: Speaker) -> int:
    return int(speaker.instance.events.split(":")[1])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("more", [(), ("encrypted",)], ids=["plain", "with keys of its own"])
@pytest.mark.parametrize("token", [None, "secret"], ids=["no token", "token"])
@pytest.mark.event_loop(kind="asyncio")
async def test_a_stranger_who_subscribes_without_end_makes_it_hold_nothing(token, more):
    carrier = quick_carrier("zmq")
    async with (
        Speaker(carrier.publisher(token)).speaking(token=token) as speaker,
        listening(carrier, speaker.instance, token=token) as listener,
    ):
        speaker.store(1)
        await listener.agrees(speaker)
        before = resident_bytes()
        words = ("-c", FLOOD, str(port_of(speaker)), *more)
        flood = await asyncio.create_subprocess_exec(sys.executable, *words)
        assert await flood.wait() == 0
        assert resident_bytes() - before < 16 * MIB
        speaker.store(2)
        await listener.agrees(speaker)


async def test_a_follower_needs_the_secret_that_discovery_tells():
    """Where there is no shared token."""

    async with Speaker(quick_carrier("zmq").publisher()).speaking() as speaker:
        scheme, port, secret = speaker.instance.events.split(":")
        assert len(secret) == 32

        async def hears(events):
            receiver = ZmqReceiver(None, first_word_s=0.2)
            try:
                with contextlib.suppress(TimeoutError):
                    async with receiver.listen(instance(events=events)) as inbox, asyncio.timeout(1):
                        return bool(await inbox.receive())
            finally:
                await receiver.close()

        assert await hears(f"{scheme}:{port}:{secret}")
        wrong = (f"{scheme}:{port}", f"{scheme}:{port}:{'0' * 32}")
        assert await asyncio.gather(*map(hears, wrong)) == [None, None]


async def test_connections_are_bounded_and_silent_ones_end(monkeypatch):
    monkeypatch.setattr(zmq_listener, "MAX_CONNECTIONS", 20)
    carrier = quick_carrier("zmq", reconnect_ms=10)
    async with (
        Speaker(carrier.publisher()).speaking() as speaker,
        listening(carrier, speaker.instance) as early,
    ):
        await early.agrees(speaker)
        door = speaker.publisher._sender._listener
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                for _ in range(10):
                    one = stack.enter_context(socket.socket())
                    one.setblocking(False)
                    one.connect_ex(("127.0.0.1", port_of(speaker)))
                await asyncio.sleep(0.001)
            await until(lambda: not door.is_open, "the port is closed")
            assert door.connections < 60
            speaker.store(1)
            await early.agrees(speaker)
            await until(lambda: door.is_open and door.connections == 1, "the silent ones are gone")
        async with listening(carrier, speaker.instance, "late") as late:
            await late.agrees(speaker)
            speaker.store(2)
            await late.agrees(speaker)
            assert late.snapshots == 1, "it hears each change"


async def test_bytes_of_any_kind_end_their_connection_only():
    carrier = quick_carrier("zmq")
    async with (
        Speaker(carrier.publisher()).speaking() as speaker,
        listening(carrier, speaker.instance) as listener,
    ):
        await listener.agrees(speaker)
        door = speaker.publisher._sender._listener
        curve = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
        hello = b"\x04\xc8\x05HELLO\x01\x00" + bytes(192)
        for words in (b"GET / HTTP/1.1\r\n\r\n", curve, curve + hello, curve + b"\x06" + b"\xff" * 8 + bytes(9000)):
            for _ in range(20):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port_of(speaker))) as one:
                    one.sendall(words)
            await asyncio.sleep(0)
        await until(lambda: door.connections == 1, "only the follower is left")
        speaker.store(1)
        await listener.agrees(speaker)
        assert listener.snapshots == 1
