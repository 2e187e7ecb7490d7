"""What every back end of the transfer plane must do (``transfer.base``): move tensors, and keep their leases."""

from __future__ import annotations

import asyncio
import gc
import os
import time

import msgspec
import pytest
from transfer_support import MIB, empty, exported, filled, lost, over_all_backends, transfers

from support.loops import until
from triptych.contracts.tensor import DTYPE_BYTES, TensorHandle

pytestmark = over_all_backends


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
async def test_a_round_trip_of_every_dtype_and_shape(backend, dtype):
    async with transfers(backend) as (owner, receiver):
        shapes = [(), (0,), (1,), (3, 0, 2), (7, 5), (2, 3, 4, 5), (1025,)]
        buffers = await owner.allocate(shapes, dtype)
        for buffer in buffers:
            buffer.data[:] = os.urandom(len(buffer.data))
        handles = [owner.export(buffer) for buffer in buffers]
        got = await receiver.fetch(handles)
        for sent, came in zip(buffers, got, strict=True):
            assert (came.shape, came.dtype) == (sent.shape, sent.dtype)
            assert came.data == sent.data
            assert came.data.format == "B"
            assert not came.data.readonly
        for buffer in buffers + got:
            buffer.close()
        await empty(owner, receiver)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_both_event_loops(backend, loop):
    async with transfers(backend) as (owner, receiver):
        handle, content = await exported(owner, 3 * MIB)
        (buffer,) = await receiver.fetch([handle])
        assert buffer.data == content


async def test_handles_cross_the_wire(backend):
    async with transfers(backend) as (owner, receiver):
        handle, content = await exported(owner)
        sent = msgspec.msgpack.decode(msgspec.msgpack.encode(handle), type=TensorHandle)
        (buffer,) = await receiver.fetch([sent])
        assert buffer.data == content


async def test_a_tensor_larger_than_a_slab(backend):
    async with transfers(backend) as (owner, receiver):
        small, _ = await exported(owner, 700_000)
        handle, content = await exported(owner, 5 * MIB + 3)
        first = await filled(receiver, 300_000)
        (buffer,) = await receiver.fetch([handle])
        assert buffer.data == content
        buffer.close()
        first.close()
        owner.release(small)
        await empty(owner, receiver)


async def test_many_small_items_in_one_fetch(backend):
    async with transfers(backend) as (owner, receiver):
        items = [await exported(owner, 1 + 17 * number, number) for number in range(300)]
        got = await receiver.fetch([handle for handle, _ in items])
        assert [bytes(buffer.data) for buffer in got] == [content for _, content in items]
        for buffer in got:
            buffer.close()
        await empty(owner, receiver)
        assert receiver.stats().fetched == 300


async def test_from_several_owners_at_once_and_from_oneself(backend):
    async with transfers(backend, 3) as made:
        items = [await exported(one, 100_000, seed) for seed, one in enumerate(made)]
        got = await made[2].fetch([handle for handle, _ in items])
        assert [bytes(buffer.data) for buffer in got] == [content for _, content in items]
        for buffer in got:
            buffer.close()
        await empty(*made)


async def test_many_fetches_at_the_same_time(backend):
    async with transfers(backend, 3, arena_bytes=32 * MIB) as (left, right, receiver):
        items = [await exported((left, right)[n % 2], 1 + 5003 * n, n) for n in range(80)]

        async def one(handle, content):
            (buffer,) = await receiver.fetch([handle])
            assert buffer.data == content
            buffer.close()

        await asyncio.gather(*(one(*item) for item in items))
        await empty(left, right, receiver)


async def test_the_lease_holds_the_buffer_until_it_was_fetched(backend):
    async with transfers(backend) as (owner, receiver):
        handle, content = await exported(owner)
        assert (owner.stats().buffers, owner.stats().leases) == (1, 1)
        (buffer,) = await receiver.fetch([handle])
        await empty(owner)
        assert buffer.data == content
        assert (owner.stats().exported, owner.stats().expired) == (1, 0)
        await lost(receiver.fetch([handle]))
        assert receiver.stats().buffers == 1
        assert (receiver.stats().fetched, receiver.stats().failed) == (1, 1)
        assert receiver.stats().fetched_bytes == 1000


async def test_one_buffer_exported_twice_is_fetched_twice(backend):
    async with transfers(backend) as (owner, receiver):
        buffer = await filled(owner, 500)
        handles = [owner.export(buffer), owner.export(buffer)]
        for copy in await receiver.fetch(handles):
            assert copy.data == buffer.data
        assert owner.stats().buffers == 1


async def test_a_second_fetch_fails_whoever_asks(backend):
    async with transfers(backend, 3) as (owner, first, second):
        handle, _ = await exported(owner)
        await first.fetch([handle])
        await lost(second.fetch([handle]))
        await lost(owner.fetch([handle]))
        assert second.stats().used_bytes == 0


async def test_release_ends_a_lease_once_and_only_ones_own(backend):
    async with transfers(backend) as (owner, receiver):
        handle, _ = await exported(owner)
        receiver.release(handle)
        assert owner.stats().leases == 1
        owner.release(handle)
        owner.release(handle)
        owner.release(msgspec.structs.replace(handle, lease=99))
        assert (owner.stats().leases, owner.stats().used_bytes) == (0, 0)
        await lost(receiver.fetch([handle]))


async def test_a_receiver_declines_what_it_needs_no_more(backend):
    async with transfers(backend) as (owner, receiver):
        handles = [(await exported(owner, seed=seed))[0] for seed in range(3)]
        receiver.release_remote([handles[0], msgspec.structs.replace(handles[1], location=b"nonsense"), handles[2]])
        owner.release_remote([])
        await until(lambda: (owner.leases.collect(), len(owner.leases))[1] == 1, "two leases are over")
        (buffer,) = await receiver.fetch([handles[1]])
        buffer.close()
        own, _ = await exported(owner)
        owner.release_remote([own])
        await empty(owner, receiver)
        assert receiver.stats().fetched == 1


async def test_declining_what_is_gone_raises_nothing(backend, caplog):
    async with transfers(backend, 3) as (gone, owner, receiver):
        lost_one, (other, content) = (await exported(gone))[0], await exported(owner)
        await gone.close()
        receiver.release_remote([lost_one])
        (buffer,) = await receiver.fetch([other])
        assert buffer.data == content
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_lease_expires(backend):
    async with transfers(backend, lease_s=0.2) as (owner, receiver):
        before = time.time()
        handle, _ = await exported(owner)
        assert before + 0.15 < handle.expires_unix_s < time.time() + 0.25
        await empty(owner)
        assert time.time() >= before + 0.19
        assert owner.stats().expired == 1
        await lost(receiver.fetch([handle]))
        await empty(receiver)


async def test_three_thousand_small_hand_overs_without_growth(backend):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    async def hand_over(owner, receiver, count):
        for seed in range(count):
            (buffer,) = await owner.allocate([(4096,)], "uint8")
            buffer.data[:8] = seed.to_bytes(8, "little")
            handle = owner.export(buffer)
            buffer.close()
            (came,) = await receiver.fetch([handle])
            assert came.data[:8] == seed.to_bytes(8, "little")
            came.close()

    async def main():
        async with transfers(backend) as (owner, receiver):
            await hand_over(owner, receiver, 500)
            gc.collect()
            before = resident()
            await hand_over(owner, receiver, 2500)
            await empty(owner, receiver)
            gc.collect()
            assert resident() - before < 4 * MIB
            assert owner.stats().reserved_bytes <= 4 * MIB, "a second round begins before the owner hears of the first"

    await main()
