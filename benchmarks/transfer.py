"""``python -m benchmarks.transfer``: tensors handed from one process to another, beside bare NIXL READs.

One other process owns memory: some of it registered with a bare NIXL agent, some of it in a ``NixlTransfer``'s
arena. In turns, this process READs the first with NIXL's bindings alone (one transfer, polled to its end), and
takes the second by the whole way of a hand-over: export, fetch. Before every turn of either kind the owner writes
the bytes anew and says so over a pipe, as an encoder would. Turns alternate within every size, so that noise of
the machine hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.machine import describe
from benchmarks.stats import percentile
from triptych.config.transfer import TransferConfig
from triptych.contracts.tensor import TensorHandle
from triptych.transfer.memory import AnonymousMemory
from triptych.transfer.nixl_agent import NixlAgent
from triptych.transfer.registry import make_transfer
from triptych.transfer.spans import Piece, Span

KIB, MIB = 1 << 10, 1 << 20
LOADS = (
    (1, 16 * KIB),
    (1, 64 * KIB),
    (16, 64 * KIB),
    (1, MIB),
    (1, 4 * MIB),
    (4, 4 * MIB),
    (1, 16 * MIB),
    (1, 64 * MIB),
)
"""(tensors, bytes of each), all of one turn in one operation."""
LARGEST = max(count * size for count, size in LOADS)
RESULTS = Path(__file__).parent / "results" / "transfer.md"
_HANDLES = msgspec.msgpack.Decoder(list[TensorHandle])


class Took(NamedTuple):
    """Seconds by the clock, and of one thread's processor time."""

    clock_s: float
    cpu_s: float


class Watch:
    """Started when it is made."""

    def __init__(self) -> None:
        self._cpu_s = time.thread_time()
        self._clock_s = time.perf_counter()

    def stop(self) -> Took:
        clock_s = time.perf_counter() - self._clock_s
        return Took(clock_s, time.thread_time() - self._cpu_s)


class Bare:
    """A NIXL agent with one registered range, touched beforehand."""

    def __init__(self, name: str) -> None:
        self.agent = NixlAgent(name, "lo")
        self.memory = AnonymousMemory(LARGEST)
        self.memory.back(0, LARGEST)
        registered = self.agent.register(Span(self.memory.address, LARGEST))
        self.metadata = self.agent.metadata(registered, connection=True)

    def read(self, remote: str, address: int, count: int, size: int) -> Took:
        """Seconds that one READ takes, polled without a pause; of the clock, and of this thread's processor time."""
        pieces = [Piece(self.memory.address + n * size, address + n * size, size) for n in range(count)]
        watch = Watch()
        transfer = self.agent.read(remote, pieces)
        while transfer is not None and not self.agent.ended(transfer):
            pass
        took = watch.stop()
        if transfer is not None:
            self.agent.drop(transfer)
        return took


def own(pipe: Connection, backend: str) -> None:
    """The other process: for (``bare`` or ``ours``, tensors, a size) it writes the bytes and answers, until None."""

    async def main() -> None:
        bare = Bare("bare-owner")
        content = bytes(LARGEST)
        transfer = make_transfer(TransferConfig(transfer=backend))
        await transfer.start()
        pipe.send((bare.memory.address, bare.metadata))
        while (turn := await asyncio.to_thread(pipe.recv)) is not None:
            kind, count, size = turn
            if kind == "bare":
                bare.memory.view[: count * size] = content[: count * size]
                pipe.send((b"", Took(0.0, 0.0)))
                continue
            buffers = await transfer.allocate([(size,)] * count, "uint8")
            for buffer in buffers:
                buffer.data[:] = content[:size]
                buffer.data[:8] = size.to_bytes(8, "little")
            watch = Watch()
            handles = msgspec.msgpack.encode([transfer.export(buffer) for buffer in buffers])
            for buffer in buffers:
                buffer.close()
            pipe.send((handles, watch.stop()))
        await transfer.close()

    asyncio.run(main())


async def measure(pipe: Connection, backend: str, seconds: float) -> list[dict[str, float]]:
    bare = Bare("bare-receiver")
    transfer = make_transfer(TransferConfig(transfer=backend))
    await transfer.start()
    address, metadata = await asyncio.to_thread(pipe.recv)
    remote = bare.agent.add_remote(metadata)
    rows = []
    for count, size in LOADS:
        for _ in range(3):  # connects, and takes memory
            await turn(pipe, transfer, count, size)
            bare.read(remote, address, count, size)
        raw: list[Took] = []
        ours: list[Took] = []
        begun = time.perf_counter()
        while len(raw) < 12 or time.perf_counter() - begun < seconds:
            await ready(pipe, "bare", count, size)
            raw.append(bare.read(remote, address, count, size))
            ours.append(await turn(pipe, transfer, count, size))
        rows.append(summary(count, size, raw, ours))
    pipe.send(None)
    await transfer.close()
    return rows


async def ready(pipe: Connection, kind: str, count: int, size: int) -> tuple[bytes, Took]:
    """The owner has written the bytes: its handles of them, and what exporting them took."""
    pipe.send((kind, count, size))
    handle, took = await asyncio.to_thread(pipe.recv)
    return handle, took


async def turn(pipe: Connection, transfer: Any, count: int, size: int) -> Took:
    """From export to the bytes here, without the way of the handles between the two."""
    sent, export = await ready(pipe, "ours", count, size)
    watch = Watch()
    buffers = await transfer.fetch(_HANDLES.decode(sent))
    fetch = watch.stop()
    assert len(buffers) == count
    for buffer in buffers:
        assert buffer.data[:8] == size.to_bytes(8, "little"), "the wrong bytes"
        buffer.close()
    return Took(export.clock_s + fetch.clock_s, export.cpu_s + fetch.cpu_s)


def summary(count: int, size: int, raw: list[Took], ours: list[Took]) -> dict[str, float]:
    found: dict[str, float] = {"count": count, "size": size, "turns": len(raw)}
    for name, turns in (("raw", raw), ("ours", ours)):
        found[name] = percentile([one.clock_s for one in turns], 0.5)
        found[f"{name}90"] = percentile([one.clock_s for one in turns], 0.9)
        found[f"{name}_cpu"] = percentile([one.cpu_s for one in turns], 0.5)
    return found


def table(rows: list[dict[str, float]]) -> str:
    lines = [
        "| size | bare READ p50 / p90 us | GB/s | hand-over p50 / p90 us | GB/s | rate ÷ bare | added p50 us "
        "| CPU p50 us, bare / hand-over | turns |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        raw, ours, size = row["raw"], row["ours"], row["count"] * row["size"]
        each = f"{row['size'] // MIB:.0f} MiB" if row["size"] >= MIB else f"{row['size'] // KIB:.0f} KiB"
        name = each if row["count"] == 1 else f"{row['count']:.0f} x {each}"
        lines.append(
            f"| {name} | {raw * 1e6:,.0f} / {row['raw90'] * 1e6:,.0f} | {size / raw / 1e9:.2f} "
            f"| {ours * 1e6:,.0f} / {row['ours90'] * 1e6:,.0f} | {size / ours / 1e9:.2f} "
            f"| {raw / ours:.2f} | {(ours - raw) * 1e6:,.0f} "
            f"| {row['raw_cpu'] * 1e6:,.0f} / {row['ours_cpu'] * 1e6:,.0f} | {row['turns']:.0f} |"
        )
    return "\n".join(lines)


def report(rows: list[dict[str, float]], backend: str, command: str, load: str) -> str:
    facts = {"date": datetime.date.today().isoformat(), "command": f"`{command}`", **describe()}
    facts["load average before"] = load
    head = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    return f"""# Transfer: tensors between two processes, `{backend}` beside bare NIXL READs

{head}

A hand-over is export, decode the handle, allocate, fetch (bytes, then the lease's state; the owner hears of it
afterwards); the way of the handle between the processes is left out. Several tensors go in one operation. A bare
READ is one NIXL transfer over memory that both sides registered and touched before, polled without a pause. The two
take turns within every size, and before every turn the owner writes all bytes anew.

{table(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--transfer", default="nixl", choices=("nixl", "shm"), help="back end to measure")
    parser.add_argument("--seconds", type=float, default=3.0, help="least time for each size")
    parser.add_argument("--output", type=Path, default=None, help=f"file to write (default for nixl: {RESULTS.name})")
    options = parser.parse_args()
    load = f"{os.getloadavg()[0]:.2f}"
    pipe, theirs = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=own, args=(theirs, options.transfer), daemon=True)
    other.start()
    rows = asyncio.run(measure(pipe, options.transfer, options.seconds))
    other.join()
    words = "" if options.transfer == "nixl" else f" --transfer {options.transfer}"
    text = report(rows, options.transfer, f"python -m benchmarks.transfer{words}", load)
    print(text)
    output = options.output or (RESULTS if options.transfer == "nixl" else None)
    if output:
        output.write_text(text)


if __name__ == "__main__":
    main()
