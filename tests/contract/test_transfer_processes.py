"""Transfers between processes, one of which may be stopped or killed at any moment.

Run as a program, this file is the other process: it answers one command a line on its standard output.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import random
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from support.loops import SOON_S, until, until_async
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import Unavailable
from triptych.contracts.tensor import TensorHandle
from triptych.transfer.registry import make_transfer

MIB = 1 << 20
PR_SET_DUMPABLE = 4
NOBODY, SOMEBODY = 65534, 65533
SETTINGS = {"arena_bytes": 64 * MIB, "slab_bytes": 4 * MIB, "transfer_timeout_s": 1.0}


async def main_of_child(backend, lease_s, user="", dumpable="1"):
    if user and not os.getuid():
        await load_all(backend)
        become(int(user))
    prctl(PR_SET_DUMPABLE, int(dumpable))
    transfer = make_transfer(TransferConfig(transfer=backend, lease_s=lease_s, **SETTINGS))
    await transfer.start()
    answer("ready")
    while words := (await asyncio.to_thread(sys.stdin.readline)).split():
        if words[0] == "export":
            answer(await export(transfer, int(words[1]), int(words[2])))
        elif words[0] == "fetch":
            answer(await fetch(transfer, words[1]))
        elif words[0] == "stats":
            stats = transfer.stats()
            answer(f"{stats.leases} {stats.used_bytes}")
    await transfer.close()


async def load_all(backend):
    """What the other user may be unable to read: Python's modules, and UCX's, which come with the first agent."""
    transfer = make_transfer(TransferConfig(transfer=backend, **SETTINGS))
    await transfer.start()
    await transfer.close()


def become(user):
    """Another user, who is not root, and without any right of root's."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def prctl(*arguments):
    assert ctypes.CDLL(None).prctl(*arguments) == 0


def answer(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def content(size, seed):
    return random.Random(seed).randbytes(size)


async def export(transfer, size, seed):
    (buffer,) = await transfer.allocate([(size,)], "uint8")
    buffer.data[:] = content(size, seed)
    handle = transfer.export(buffer)
    buffer.close()
    return msgspec.msgpack.encode(handle).hex()


async def fetch(transfer, handle):
    try:
        (buffer,) = await transfer.fetch([decode(handle)])
    except Unavailable as error:
        return error.code
    digest = hashlib.sha256(buffer.data).hexdigest()
    buffer.close()
    return digest


def decode(handle):
    return msgspec.msgpack.decode(bytes.fromhex(handle), type=TensorHandle)


class Other:
    """The other process."""

    def __init__(self, backend, lease_s=30.0, *more):
        """``more``: the user that it becomes, and whether it is dumpable."""
        self.process = subprocess.Popen(
            [sys.executable, __file__, backend, str(lease_s), *map(str, more)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def tell(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    async def heard(self):
        return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    async def ask(self, *words):
        self.tell(*words)
        return await self.heard()

    async def gave_back(self):
        return await self.ask("stats") == "0 0"

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def close(self):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(params=["shm", "nixl", "nixl-far"])
def backend(request, monkeypatch):
    """``nixl-far``: this process takes no look at tables on its own machine."""
    if request.param != "shm" and find_spec("nixl") is None:
        pytest.skip("NIXL is not installed")
    if request.param == "nixl-far":
        monkeypatch.setattr("triptych.transfer.nixl.transfer.open_shared_table", lambda *where: None)
    return request.param.removesuffix("-far")


@asynccontextmanager
async def pair(backend, lease_s=30.0):
    """A transfer of this process, and the other process."""
    other = Other(backend, lease_s)
    mine = make_transfer(TransferConfig(transfer=backend, lease_s=lease_s, **SETTINGS))
    try:
        await mine.start()
        assert await other.heard() == "ready"
        yield mine, other
    finally:
        await mine.close()
        other.close()


async def fails_soon(fetching):
    with pytest.raises(Unavailable) as caught:
        async with asyncio.timeout(SOON_S):
            await fetching
    assert caught.value.code == "transfer_failed"


async def test_both_ways_at_every_size(backend):
    async with pair(backend) as (mine, other):
        for seed, size in enumerate((0, 1, 5000, 65_536, 4 * MIB + 1, 20 * MIB)):
            handle = decode(await other.ask("export", size, seed))
            (buffer,) = await mine.fetch([handle])
            assert buffer.data == content(size, seed), "theirs comes here"
            buffer.close()
            await asyncio.sleep(0)  # the owner hears of it a turn of the loop later
            with pytest.raises(Unavailable):
                await mine.fetch([handle])
            digest = await other.ask("fetch", await export(mine, size, seed))
            assert digest == hashlib.sha256(content(size, seed)).hexdigest(), "mine goes there"
        await until(lambda: not mine.stats().leases and not mine.stats().used_bytes, "all is given back")
        await until_async(lambda: other.gave_back(), "all is given back there")


async def test_an_owner_that_was_killed_before_the_fetch(backend):
    stranger = make_transfer(TransferConfig(transfer=backend, **SETTINGS))
    async with pair(backend) as (mine, other):
        await stranger.start()
        known = decode(await other.ask("export", 1000, 1))
        (await mine.fetch([known]))[0].close()
        handle = decode(await other.ask("export", 1000, 2))
        other.kill()
        for receiver in (mine, mine, stranger, stranger):
            await fails_soon(receiver.fetch([handle]))
            assert receiver.stats().used_bytes == 0
        await stranger.close()


async def test_an_owner_that_hangs_and_then_dies_during_a_fetch(backend):
    if backend == "shm":
        pytest.skip("a stopped owner takes no part in a fetch from shared memory")
    async with pair(backend) as (mine, other):
        handle = decode(await other.ask("export", 10 * MIB, 1))
        other.process.send_signal(signal.SIGSTOP)
        await fails_soon(mine.fetch([handle]))
        fetching = asyncio.create_task(mine.fetch([handle]))
        await until(lambda: mine.stats().used_bytes, "the fetch is under way")
        other.kill()
        await fails_soon(fetching)
        await until(lambda: not mine.stats().used_bytes, "what a transfer might still write to is given back")
        left = await export(mine, 10, 1)
        (buffer,) = await mine.fetch([decode(left)])
        assert buffer.data == content(10, 1)


async def test_a_receiver_that_is_killed_keeps_nothing(backend):
    async with pair(backend, lease_s=1.0) as (mine, other):
        assert await other.ask("fetch", await export(mine, 1000, 1))
        other.tell("fetch", await export(mine, 30 * MIB, 2))
        other.kill()
        await until(lambda: not mine.stats().used_bytes, "its lease runs out, or was done already", SOON_S)


def files_of(owner):
    return list(Path("/dev/shm").glob(f"triptych-{owner}.*"))


async def test_shared_memory_of_dead_owners_is_removed():
    async with pair("shm") as (mine, other):
        owner = decode(await other.ask("export", 1000, 1)).owner
        files = files_of(owner)
        assert len(files) == 2
        other.kill()
        assert all(file.exists() for file in files)
        late = make_transfer(TransferConfig(transfer="shm", **SETTINGS))
        await late.start()
        assert not any(file.exists() for file in files)
        handle = decode(await export(mine, 10, 1))
        assert len(await late.fetch([handle])) == 1, "those of the living stay"
        await late.close()
    assert not files_of(mine.id) + files_of(late.id), "closing removes one's own"


@asynccontextmanager
async def started(*words):
    """Other processes, one for each of ``words``; ready, and none of them root."""
    others = [Other("nixl", 30.0, *more) for more in words]
    try:
        for other in others:
            assert await other.heard() == "ready"
        yield others
    finally:
        for other in others:
            other.close()


needs_nixl = pytest.mark.skipif(find_spec("nixl") is None, reason="NIXL is not installed")


def listening(other):
    """Addresses at which the process listens on TCP, from the kernel."""
    told = subprocess.run(["ss", "-Htlnp"], check=True, capture_output=True, text=True).stdout
    return [line.split()[3] for line in told.splitlines() if f"pid={other.process.pid}," in line]


async def hand_over(one, two):
    for seed, size in enumerate((1, 65_536, 4 * MIB)):
        expected = hashlib.sha256(content(size, seed)).hexdigest()
        assert await two.ask("fetch", await one.ask("export", size, seed)) == expected
        assert await one.ask("fetch", await two.ask("export", size, seed)) == expected
    assert not listening(one) + listening(two)


async def is_out_of_reach(receiver, guarded):
    async with asyncio.timeout(SOON_S):
        for seed in range(2):
            assert await receiver.ask("fetch", await guarded.ask("export", 1000, seed)) == "transfer_failed"


@needs_nixl
@pytest.mark.event_loop(limit_s=55)
async def test_users_without_rights_of_root_hand_over_without_a_port():
    """Root may read any process's memory, which would hide that others may not."""
    guarded = [[SOMEBODY]] if not os.getuid() else []
    async with started([NOBODY], [NOBODY], *guarded) as (one, two, *others):
        await hand_over(one, two)
        for other in others:
            await is_out_of_reach(one, other)
        await hand_over(one, two)


@needs_nixl
@pytest.mark.event_loop(limit_s=55)
async def test_where_the_kernel_lets_nobody_read_anothers_memory(monkeypatch):
    """UCX then leaves its transport for that out. It cannot open a segment of a process that is not dumpable either."""
    monkeypatch.setenv("UCX_TLS", "self,posix")
    guarded = [[NOBODY, 0]] if not os.getuid() else []
    async with started([NOBODY], [NOBODY], *guarded) as (one, two, *others):
        await hand_over(one, two)
        for other in others:
            await is_out_of_reach(one, other)


if __name__ == "__main__":
    asyncio.run(main_of_child(sys.argv[1], float(sys.argv[2]), *sys.argv[3:]))
