"""Compares handing tensors over between processes with bare NIXL READs: ``python -m benchmarks.transfer``.

Another process owns memory: some of it is registered with a bare NIXL agent, and some is in the arena of a
``NixlTransfer``. In turns, this process READs the first with NIXL's bindings alone (one transfer, polled to its end),
and gets the second by a complete hand-over: export and fetch. Before every turn the owner writes the bytes again and
says so over a pipe, as an encoder would. Turns alternate within every size, so that noise of the machine hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import itertools
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
from triptych.transfer.arena.memory import AnonymousMemory
from triptych.transfer.nixl.agent import NixlAgent
from triptych.transfer.nixl.copies import AddressRange, Copy
from triptych.transfer.registry import make_transfer

KIB, MIB = 1 << 10, 1 << 20


class Load(NamedTuple):
    """The tensors that move in one turn."""

    operations: int
    """The number of operations at the same time."""
    count: int
    """The number of tensors of one operation."""
    size: int
    """The bytes of one tensor."""

    @property
    def bytes(self) -> int:
        return self.operations * self.count * self.size

    @property
    def name(self) -> str:
        each = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size // KIB} KiB"
        tensors = each if self.count == 1 else f"{self.count} x {each}"
        return tensors if self.operations == 1 else f"{tensors}, {self.operations} in flight"


LOADS = (
    Load(1, 1, 16 * KIB),
    Load(1, 1, 64 * KIB),
    Load(1, 16, 64 * KIB),
    Load(1, 1, MIB),
    Load(1, 1, 4 * MIB),
    Load(4, 1, 4 * MIB),
    Load(1, 4, 4 * MIB),
    Load(1, 1, 16 * MIB),
    Load(1, 1, 64 * MIB),
)
LARGEST = max(load.bytes for load in LOADS)
RESULTS = Path(__file__).parent / "results" / "transfer.md"
_HANDLES = msgspec.msgpack.Decoder(list[TensorHandle])


class Took(NamedTuple):
    """The seconds of real time, and of one thread's processor time."""

    clock_s: float
    cpu_s: float


class Watch:
    """Measures time from when it is made."""

    def __init__(self) -> None:
        self._cpu_s = time.thread_time()
        self._clock_s = time.perf_counter()

    def stop(self) -> Took:
        clock_s = time.perf_counter() - self._clock_s
        return Took(clock_s, time.thread_time() - self._cpu_s)


class Bare:
    """A NIXL agent with one registered range, touched beforehand."""

    def __init__(self, name: str) -> None:
        self.agent = NixlAgent(name, TransferConfig().transfer_devices)
        self.memory = AnonymousMemory(LARGEST)
        self.memory.back(0, LARGEST)
        registered = self.agent.register(AddressRange(self.memory.address, LARGEST))
        self.metadata = self.agent.metadata(registered, connection=True)

    def read(self, remote: str, address: int, load: Load) -> Took:
        """Returns the time of the READs, polled without a pause: real time, and this thread's processor time."""
        whole, size = load.count * load.size, load.size
        starts = [[at * whole + n * size for n in range(load.count)] for at in range(load.operations)]
        copies = [[Copy(self.memory.address + one, address + one, size) for one in group] for group in starts]
        watch = Watch()
        transfers = [self.agent.read(remote, group) for group in copies]
        under_way = [one for one in transfers if one is not None]
        while under_way := [one for one in under_way if not self.agent.ended(one)]:
            pass
        took = watch.stop()
        for transfer in transfers:
            if transfer is not None:
                self.agent.drop(transfer)
        return took


def own(pipe: Connection, backend: str) -> None:
    """Runs the other process. For each (``bare`` or ``ours``, load) it writes the bytes and answers; None ends it."""

    async def main() -> None:
        bare = Bare("bare-owner")
        content = bytes(LARGEST)
        transfer = make_transfer(TransferConfig(transfer=backend))
        await transfer.start()
        pipe.send((bare.memory.address, bare.metadata))
        while (turn := await received(pipe)) is not None:
            kind, load = turn
            if kind == "bare":
                bare.memory.view[: load.bytes] = content[: load.bytes]
                pipe.send(([], Took(0.0, 0.0)))
                continue
            groups = [await transfer.allocate([(load.size,)] * load.count, "uint8") for _ in range(load.operations)]
            for buffer in itertools.chain(*groups):
                buffer.data[:] = content[: load.size]
                buffer.data[:8] = load.size.to_bytes(8, "little")
            watch = Watch()
            handles = [msgspec.msgpack.encode([transfer.export(buffer) for buffer in buffers]) for buffers in groups]
            for buffer in itertools.chain(*groups):
                buffer.close()
            pipe.send((handles, watch.stop()))
        await transfer.close()

    asyncio.run(main())


async def received(pipe: Connection) -> Any:
    """Returns the next object of ``pipe``. The event loop waits for it, as a worker does for its sockets."""
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    loop.add_reader(pipe.fileno(), there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(pipe.fileno())
    return pipe.recv()


async def measure(pipe: Connection, backend: str, seconds: float) -> list[str]:
    bare = Bare("bare-receiver")
    transfer = make_transfer(TransferConfig(transfer=backend))
    await transfer.start()
    address, metadata = await received(pipe)
    remote = bare.agent.add_remote(metadata)
    rows = []
    for load in LOADS:
        for _ in range(3):  # connects, and takes memory
            await turn(pipe, transfer, load)
            bare.read(remote, address, load)
        raw: list[Took] = []
        ours: list[Took] = []
        begun = time.perf_counter()
        while len(raw) < 12 or time.perf_counter() - begun < seconds:
            await ready(pipe, "bare", load)
            raw.append(bare.read(remote, address, load))
            ours.append(await turn(pipe, transfer, load))
        rows.append(row(load, raw, ours))
    pipe.send(None)
    await transfer.close()
    return rows


async def ready(pipe: Connection, kind: str, load: Load) -> tuple[list[bytes], Took]:
    """Waits until the owner has written the bytes. Returns their handles by operation, and the time of the export."""
    pipe.send((kind, load))
    handle, took = await received(pipe)
    return handle, took


async def turn(pipe: Connection, transfer: Any, load: Load) -> Took:
    """Returns the time from the export to the bytes in this process, without the transport of the handles."""
    sent, export = await ready(pipe, "ours", load)
    watch = Watch()
    if len(sent) == 1:
        groups = [await transfer.fetch(_HANDLES.decode(sent[0]))]
    else:
        groups = await asyncio.gather(*(transfer.fetch(_HANDLES.decode(one)) for one in sent))
    fetch = watch.stop()
    buffers = list(itertools.chain(*groups))
    assert len(buffers) == load.operations * load.count
    for buffer in buffers:
        assert buffer.data[:8] == load.size.to_bytes(8, "little"), "the wrong bytes"
        buffer.close()
    return Took(export.clock_s + fetch.clock_s, export.cpu_s + fetch.cpu_s)


def row(load: Load, raw: list[Took], ours: list[Took]) -> str:
    """Returns one line of the table: medians and 90th percentiles."""
    bare, bare90 = (percentile([one.clock_s for one in raw], share) for share in (0.5, 0.9))
    own, own90 = (percentile([one.clock_s for one in ours], share) for share in (0.5, 0.9))
    bare_cpu, own_cpu = (percentile([one.cpu_s for one in turns], 0.5) for turns in (raw, ours))
    return (
        f"| {load.name} | {bare * 1e6:,.0f} / {bare90 * 1e6:,.0f} | {load.bytes / bare / 1e9:.2f} "
        f"| {own * 1e6:,.0f} / {own90 * 1e6:,.0f} | {load.bytes / own / 1e9:.2f} "
        f"| {bare / own:.2f} | {(own - bare) * 1e6:,.0f} "
        f"| {bare_cpu * 1e6:,.0f} / {own_cpu * 1e6:,.0f} | {len(raw)} |"
    )


HEAD = """\
| size | bare READ p50 / p90 us | GB/s | hand-over p50 / p90 us | GB/s | rate ÷ bare | added p50 us | CPU p50 us, \
bare / hand-over | turns |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def report(rows: list[str], backend: str, command: str, load: str) -> str:
    facts = {"date": datetime.date.today().isoformat(), "command": f"`{command}`", **describe()}
    facts["load average before"] = load
    head = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    table = "\n".join([HEAD, *rows])
    return f"""# Transfer: tensors between two processes, `{backend}` beside bare NIXL READs

{head}

A hand-over is export, decode the handle, allocate, fetch (bytes, then the lease's state; the owner hears of it
afterwards); the way of the handle between the processes is left out. `n x size` is n tensors in one operation. A bare
READ is one NIXL transfer over memory that both sides registered and touched before, polled without a pause. The two
take turns within every size, and before every turn the owner writes all bytes anew.

{table}
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
