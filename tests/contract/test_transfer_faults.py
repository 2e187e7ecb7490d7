"""What every transfer must do when something is wrong, ends early or goes away (``transfer.base``)."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from transfer_support import MIB, empty, exported, filled, lost, over_all_backends, transfers

from support.loops import SOON_S, until
from triptych.contracts.errors import TriptychError, Unavailable

pytestmark = over_all_backends


async def test_one_ended_lease_fails_the_whole_fetch_and_leaves_nothing(backend):
    async with transfers(backend) as (owner, receiver):
        handles = [(await exported(owner, 1000, n))[0] for n in range(5)]
        owner.release(handles[3])
        await lost(receiver.fetch(handles))
        await empty(receiver)
        assert owner.stats().leases == 4, "the others may still be fetched"
        assert len(await receiver.fetch(handles[:3] + handles[4:])) == 4


async def test_memory_that_was_used_anew_is_never_taken_for_the_old(backend):
    async with transfers(backend, arena_bytes=MIB) as (owner, receiver):
        old, _ = await exported(owner, 900_000, 1)
        owner.release(old)
        new, content = await exported(owner, 900_000, 2)
        await lost(receiver.fetch([old]))
        (buffer,) = await receiver.fetch([new])
        assert buffer.data == content


async def test_a_lease_that_ends_while_its_bytes_move(backend):
    async with transfers(backend, arena_bytes=32 * MIB) as (owner, receiver):
        handle, _ = await exported(owner, 20 * MIB)
        fetch = asyncio.create_task(receiver.fetch([handle]))
        while not receiver.stats().buffers:
            await asyncio.sleep(0)
        owner.release(handle)
        buffer = await filled(owner, 20 * MIB, 5)
        buffer.close()
        await lost(fetch)
        await empty(owner, receiver)


async def test_an_owner_that_closed(backend):
    async with transfers(backend, 3) as (owner, known, stranger):
        first, _ = await exported(owner)
        (await known.fetch([first]))[0].close()
        handle, _ = await exported(owner)
        await owner.close()
        async with asyncio.timeout(SOON_S):
            for receiver in (known, stranger, known):
                await lost(receiver.fetch([handle]))
        await empty(known, stranger)


async def test_cancelling_a_fetch_leaks_nothing(backend):
    async with transfers(backend, arena_bytes=16 * MIB) as (owner, receiver):
        for turns in [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30]:
            handle, _ = await exported(owner, 6 * MIB)
            fetch = asyncio.create_task(receiver.fetch([handle]))
            for _ in range(turns):
                await asyncio.sleep(0)
            fetch.cancel()
            await asyncio.wait([fetch])
            if not fetch.cancelled():
                fetch.result()[0].close()
            owner.release(handle)
            await empty(owner, receiver)


async def test_malformed_handles_harm_nothing(backend):
    rng = random.Random(4)
    async with transfers(backend, transfer_timeout_s=3.0) as (owner, receiver):
        handle, content = await exported(owner)
        change = msgspec.structs.replace
        bad = [
            change(handle, backend="carrier-pigeon"),
            change(handle, owner="nobody"),
            change(handle, owner="../../etc/passwd"),
            change(handle, owner="x" * 10_000),
            change(handle, shape=(1 << 70,)),
            change(handle, shape=(1 << 40,)),
            change(handle, shape=(-1000,)),
            change(handle, shape=(1,) * 1000),
            change(handle, dtype="object"),
            change(handle, location=b""),
            change(handle, location=b"\x00" * 1_000_000),
            change(handle, owner=receiver.id),
        ]
        bad += [change(handle, location=rng.randbytes(rng.randrange(600))) for _ in range(100)]
        for _ in range(100):
            location = bytearray(handle.location)
            location[rng.randrange(min(40, len(location)))] ^= 1 << rng.randrange(8)
            bad.append(change(handle, location=bytes(location)))
        for wrong in bad:
            (got,) = await asyncio.gather(receiver.fetch([wrong]), return_exceptions=True)
            if isinstance(got, list):
                assert got[0].data == content, "other bytes than were exported"
                got[0].close()
            else:
                assert isinstance(got, TriptychError)
                assert got.status in (400, 413, 503), got.message
        await empty(receiver)
        with pytest.raises(TriptychError):
            await receiver.fetch([handle, handle])
        owner.leases.collect()  # a change in what is not looked at again leaves a handle good
        if owner.stats().leases:
            (buffer,) = await receiver.fetch([handle])
            assert buffer.data == content


async def test_a_wrong_shape_gets_no_bytes_beyond_the_owners_memory(backend):
    async with transfers(backend, arena_bytes=4 * MIB) as (owner, receiver):
        handle, _ = await exported(owner)
        with pytest.raises(TriptychError):
            await receiver.fetch([msgspec.structs.replace(handle, shape=(4 * MIB + 64,))])
        with pytest.raises(TriptychError):
            await receiver.fetch([msgspec.structs.replace(handle, shape=(3 * MIB,), dtype="float32")])
        await empty(receiver)


async def test_closing_ends_those_who_wait_and_those_who_fetch(backend):
    async with transfers(backend, arena_bytes=16 * MIB) as (owner, receiver):
        buffer = await filled(receiver, 10 * MIB)
        waiting = asyncio.create_task(receiver.allocate([(10 * MIB,)], "uint8"))
        await until(lambda: receiver.stats().waiting, "it waits")
        handle, _ = await exported(owner, 5 * MIB)
        fetch = asyncio.create_task(receiver.fetch([handle]))
        await asyncio.sleep(0)
        await receiver.close()
        for task in (waiting, fetch):
            with pytest.raises(Unavailable):
                await task
        buffer.data[0] = 1
        buffer.close()
        for call in (receiver.allocate([(1,)], "uint8"), receiver.fetch([handle])):
            with pytest.raises(Unavailable):
                await call


async def test_only_buffers_of_ones_own_can_be_exported(backend):
    async with transfers(backend) as (owner, receiver):
        buffer = await filled(owner, 10)
        with pytest.raises(ValueError, match="own arena"):
            receiver.export(buffer)
        buffer.close()
        with pytest.raises(ValueError, match="closed"):
            owner.export(buffer)
