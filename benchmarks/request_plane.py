"""Compares the request plane with and without TLS: ``python -m benchmarks.request_plane``.

Another process answers on a port of each kind, with certificates at both ends. The two kinds take turns within
every load, so that noise of the machine hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import multiprocessing
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks.machine import describe
from benchmarks.stats import median, median_ratio
from tests.support.certificates import Authority
from triptych.observability.lag import LoopLag
from triptych.planes.request.base import Payload, Peer
from triptych.planes.request.tcp_client import TcpRequestClient
from triptych.planes.request.tcp_server import TcpRequestServer
from triptych.planes.request.tls import TlsFiles

MIB = 1 << 20
HOST = "127.0.0.1"
MESSAGE = bytes(64)
STREAMS, MESSAGES = 16, 20_000
SILENCE_S = 30.0
LAG_INTERVAL_S = 0.002


class Kind(NamedTuple):
    """A kind of connection to the other process. ``client`` keeps it open."""

    port: int
    files: TlsFiles
    client: TcpRequestClient

    def fresh(self) -> TcpRequestClient:
        return TcpRequestClient(tls=self.files.for_calling())


async def stream(payload: Payload) -> AsyncGenerator[bytes, None]:
    for _ in range(MESSAGES):
        yield MESSAGE


async def swallow(payload: Payload) -> AsyncGenerator[bytes, None]:
    yield b"%d" % len(payload)


def answer(pipe: Connection, ways: list[TlsFiles]) -> None:
    """Runs the other process, with one port for each of ``ways``, until it is terminated."""

    async def main() -> None:
        servers = [TcpRequestServer(HOST, 0, max_in_flight=100, tls=way.for_listening()) for way in ways]
        pipe.send([(await server.start({"stream": stream, "swallow": swallow}))[1] for server in servers])
        await asyncio.Event().wait()

    uvloop.run(main())


async def drained(client: TcpRequestClient, port: int, endpoint: str, payload: bytes) -> int:
    async with client.call(Peer(HOST, port), endpoint, payload, silence_s=SILENCE_S) as call:
        return sum([len(batch) async for batch in call])


async def messages(kind: Kind) -> float:
    """Returns the 64-byte messages a second."""
    begun = time.perf_counter()
    counts = await asyncio.gather(*(drained(kind.client, kind.port, "stream", b"") for _ in range(STREAMS)))
    assert counts == [MESSAGES] * STREAMS
    return STREAMS * MESSAGES / (time.perf_counter() - begun)


def uploads(size_bytes: int, count: int) -> Callable[[Kind], Awaitable[float]]:
    """Returns the MB/s of so many calls, one after another, each with a payload of that size."""
    payload = bytes(size_bytes)

    async def rate(kind: Kind) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            await drained(kind.client, kind.port, "swallow", payload)
        return count * size_bytes / 1e6 / (time.perf_counter() - begun)

    return rate


async def lateness(kind: Kind) -> float:
    """Returns the milliseconds by which a timer of this process was late at most, while it sent 64 MiB in one frame."""
    late: list[float] = []
    with LoopLag(LAG_INTERVAL_S, late.append).watching():
        await drained(kind.client, kind.port, "swallow", bytes(64 * MIB))
    return max(late) * 1e3


async def connecting(kind: Kind) -> float:
    """Returns the milliseconds to connect and to get a first, empty answer."""
    client = kind.fresh()
    begun = time.perf_counter()
    await drained(client, kind.port, "swallow", b"")
    took = time.perf_counter() - begun
    await client.close()
    return took * 1e3


LOADS: dict[str, Callable[[Kind], Awaitable[float]]] = {
    "64-byte messages, 16 streams (messages/s)": messages,
    "calls of 4 MiB, one after another (MB/s)": uploads(4 * MIB, 20),
    "calls of 64 MiB, one after another (MB/s)": uploads(64 * MIB, 2),
    "event loop late at most, sending 64 MiB (ms)": lateness,
    "connect and call once (ms)": connecting,
}


async def measure(ports: list[int], ways: list[TlsFiles], rounds: int) -> list[str]:
    kinds = [Kind(port, way, TcpRequestClient(tls=way.for_calling())) for port, way in zip(ports, ways, strict=True)]
    rows = []
    for name, load in LOADS.items():
        figures: list[list[float]] = [[], []]
        for kind in kinds:
            await load(kind)
        for turn in range(rounds):
            for place in (0, 1) if turn % 2 else (1, 0):
                figures[place].append(await load(kinds[place]))
        plain, tls = figures
        ratio = median_ratio(tls, plain)
        rows.append(f"| {name} | {median(plain):,.4g} | {median(tls):,.4g} | {ratio:.2f} |")
    for kind in kinds:
        await kind.client.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.request_plane", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="turns of either kind at every load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        ways = [TlsFiles(), TlsFiles(**authority.issue()._asdict(), ca=authority.ca)]
        pipe, theirs = multiprocessing.Pipe()
        other = multiprocessing.get_context("spawn").Process(target=answer, args=(theirs, ways), daemon=True)
        other.start()
        rows = uvloop.run(measure(pipe.recv(), ways, options.rounds))
        other.terminate()
        other.join()
    for key, value in {"date": datetime.date.today().isoformat(), **describe()}.items():
        print(f"- {key}: {value}")
    print("\n| load | plain | TLS | TLS ÷ plain |\n| --- | --- | --- | --- |", *rows, sep="\n")


if __name__ == "__main__":
    main()
