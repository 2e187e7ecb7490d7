"""Measures what it costs a worker to report its KV cache to frontends, by carrier: ``python -m benchmarks.events``.

One process publishes as a worker does; another one runs all followers, each with its own connections. Batches come at a
fixed rate, with a time stamp of the clock that both processes share.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop

from benchmarks.machine import describe
from benchmarks.procs import cpu_seconds
from benchmarks.stats import median, percentile
from triptych.cli.planes import event_publisher, event_source
from triptych.config.serve import PlaneConfig
from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.kv_events import KvChange, Level, packed, unpacked
from triptych.contracts.spans import Span
from triptych.deploy.nats_server import nats_server
from triptych.kv.log import KvLog
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.request.tcp_client import TcpRequestClient
from triptych.planes.request.tcp_server import TcpRequestServer

RESULT = Path(__file__).parent / "results" / "events.md"
CARRIERS = {"request": False, "zmq": False, "zmq, encrypted": True, "jetstream": False}
"""The carriers; True if there is a shared token."""
FOLLOWERS = (0, 1, 4, 16)
BATCH_BLOCKS = 32
"""The blocks that a batch stores, and removes, as a chunk of prefill does with a full cache."""
RATE = 200
ID = "w"
IDLE_S = 2.0
HEAD = """\
One worker, {rate} batches a second of {blocks} blocks stored and {blocks} removed; worker and followers in one process
each, on the same cores. Worker: CPU of its whole process for a batch, all followers together; with no follower, what
the program that makes the batches takes. Idle: the same for a second in which nothing happens. Server: CPU of
nats-server for a batch. Latency: from the change in the worker to the decoded message at a follower. Medians of
{rounds} rounds, in which the carriers take turns.
"""


class Leg(NamedTuple):
    worker_us: float
    idle_ms: float
    server_us: float
    p50_ms: float
    p99_ms: float


class Ready(msgspec.Struct):
    """The worker's process reports that it is ready."""

    port: int
    events: str


class Used(msgspec.Struct):
    """The CPU time used, in seconds."""

    idle_s: float
    busy_s: float


async def work(plane: PlaneConfig, batches: int) -> None:
    """Runs the worker's process, which goes on at each line of its standard input."""
    log, publisher = KvLog(list), event_publisher(plane, "127.0.0.1")
    server = TcpRequestServer("127.0.0.1", 0, max_in_flight=1000, token=os.environ.get("TRIPTYCH_TOKEN"))
    events = await publisher.start(log, LoadTracker())
    _, port = await server.start({}, publisher.endpoints(), id=ID)
    say(Ready(port, events))
    await told_to()
    begun = time.process_time()
    await asyncio.sleep(IDLE_S)
    idle_s = time.process_time() - begun
    begun, start = time.process_time(), time.monotonic()
    for number in range(batches):
        await asyncio.sleep(start + number / RATE - time.monotonic())
        blocks = [time.monotonic_ns(), *range(number * BATCH_BLOCKS + 1, (number + 1) * BATCH_BLOCKS)]
        changes = [KvChange(Level.DEVICE, stored, packed(blocks)) for stored in (True, False)]
        log.publish(changes)
    await told_to()
    say(Used(idle_s, time.process_time() - begun))
    log.close()
    await server.close()
    await publisher.close()


def say(message: msgspec.Struct) -> None:
    print(msgspec.json.encode(message).decode(), flush=True)


async def told_to() -> None:
    await asyncio.to_thread(sys.stdin.readline)


async def leg(plane: PlaneConfig, token: str | None, followers: int, batches: int, server_pid: int) -> Leg:
    words = ["-m", "benchmarks.events", "--worker", msgspec.json.encode(plane).decode(), "--batches", str(batches)]
    environment = {**os.environ, **({"TRIPTYCH_TOKEN": token} if token else {})}
    pipe = asyncio.subprocess.PIPE
    worker = await asyncio.create_subprocess_exec(sys.executable, *words, stdin=pipe, stdout=pipe, env=environment)
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        ready = msgspec.json.decode(await worker.stdout.readline(), type=Ready)
        took: list[float] = []
        async with AsyncExitStack() as stack:
            heard = [
                await stack.enter_async_context(following(plane, token, ready, took, batches)) for _ in range(followers)
            ]
            worker.stdin.write(b"\n")
            await asyncio.sleep(IDLE_S)
            begun = cpu_seconds([server_pid]) if server_pid else 0.0
            await asyncio.sleep(batches / RATE)
            async with asyncio.timeout(10):
                await asyncio.gather(*(event.wait() for event in heard))
            server_s = cpu_seconds([server_pid]) - begun if server_pid else 0.0
            worker.stdin.write(b"\n")
            used = msgspec.json.decode(await worker.stdout.readline(), type=Used)
        per_batch = 1e6 / batches
        return Leg(
            used.busy_s * per_batch,
            used.idle_s / IDLE_S * 1e3,
            server_s * per_batch,
            percentile(took, 0.5) * 1e3,
            percentile(took, 0.99) * 1e3,
        )
    finally:
        with suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()


@asynccontextmanager
async def following(
    plane: PlaneConfig, token: str | None, ready: Ready, took: list[float], batches: int
) -> AsyncIterator[asyncio.Event]:
    """Runs a follower from its snapshot on. Yields an event that is set once it has received so many batches."""
    card = ModelCard(name="m", path="", context_length=1)
    instance = Instance(
        id=ID,
        name="w",
        component="w",
        span=Span.EPD,
        capable_span=Span.EPD,
        engine="mock",
        model=card,
        host="127.0.0.1",
        port=ready.port,
        events=ready.events,
    )
    if token:
        os.environ["TRIPTYCH_TOKEN"] = token
    client = TcpRequestClient(token)
    source = event_source(plane, client)
    os.environ.pop("TRIPTYCH_TOKEN", None)
    up, all_heard = asyncio.Event(), asyncio.Event()

    async def follow() -> None:
        heard = 0
        async with aclosing(source.follow(instance, "o")) as news:
            async for told in news:
                if told.kv is None or told.kv.reset:
                    up.set()
                    continue
                now = time.monotonic_ns()
                for change in told.kv.changes[::2]:
                    took.append((now - unpacked(change.hashes)[0]) / 1e9)
                    heard += 1
                if heard == batches:
                    all_heard.set()

    task = asyncio.create_task(follow())
    await up.wait()
    try:
        yield all_heard
    finally:
        task.cancel()
        await asyncio.wait([task])
        await source.close()
        await client.close()


async def measured(rounds: int, batches: int) -> dict[tuple[str, int], list[Leg]]:
    legs: dict[tuple[str, int], list[Leg]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with nats_server("127.0.0.1", 0, None, Path(folder), print) as server:
            for number in range(rounds):
                names = list(CARRIERS)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    carrier = name.split(",")[0]
                    nats = carrier == "jetstream"
                    plane = PlaneConfig(events=carrier, plane=server.url if nats else "local")  # type: ignore[arg-type]
                    token = "a shared token" if CARRIERS[name] else None
                    for followers in FOLLOWERS:
                        done = await leg(plane, token, followers, batches, server.pid if nats else 0)
                        legs.setdefault((name, followers), []).append(done)
                        print(f"round {number + 1}: {name}, {followers} followers: {done}")
    return legs


def page(legs: dict[tuple[str, int], list[Leg]], rounds: int, load: float) -> str:
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"`python -m benchmarks.events --rounds {rounds}`",
        **describe(),
        "load average before": f"{load:.2f}",
    }
    lines = [
        "# Events: what it costs to tell frontends what a worker holds",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        HEAD.format(rate=RATE, blocks=BATCH_BLOCKS, rounds=rounds),
        "| carrier | followers | worker us/batch | idle ms/s | server us/batch | latency p50 / p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    for (name, followers), all_of in legs.items():
        leg = Leg(*(median(values) for values in zip(*all_of, strict=True)))
        server = f"{leg.server_us:.0f}" if leg.server_us else "–"
        lines.append(
            f"| {name} | {followers} | {leg.worker_us:.0f} | {leg.idle_ms:.1f} | {server} "
            f"| {f'{leg.p50_ms:.2f} / {leg.p99_ms:.2f}' if followers else '–'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=800)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        uvloop.run(work(msgspec.json.decode(args.worker, type=PlaneConfig), args.batches))
        return
    load = os.getloadavg()[0]
    text = page(uvloop.run(measured(args.rounds, args.batches)), args.rounds, load)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
