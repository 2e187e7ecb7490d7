"""What every back end of the transfer plane must do (``transfer.base``)."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from contextlib import asynccontextmanager
from importlib.util import find_spec

import msgspec
import pytest

from support.loops import run, until
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import PayloadTooLarge, TriptychError, Unavailable
from triptych.contracts.tensor import DTYPE_BYTES, TensorHandle
from triptych.transfer.registry import make_transfer

MIB = 1 << 20
needs_nixl = pytest.mark.skipif(find_spec("nixl") is None, reason="NIXL is not installed")


@pytest.fixture(params=["inproc", "shm", pytest.param("nixl", marks=needs_nixl)])
def backend(request):
    return request.param


@asynccontextmanager
async def transfers(backend, count=2, **settings):
    """Started ones; at the end nothing of theirs may be left in use."""
    settings = {"arena_bytes": 8 * MIB, "slab_bytes": MIB, **settings}
    made = [make_transfer(TransferConfig(transfer=backend, **settings)) for _ in range(count)]
    try:
        for one in made:
            await one.start()
        yield made
    finally:
        for one in made:
            await one.close()
            await one.close()


async def filled(transfer, size, seed=0, dtype="uint8"):
    (buffer,) = await transfer.allocate([(size,)], dtype)
    buffer.data[:] = random.Random(seed).randbytes(len(buffer.data))
    return buffer


async def exported(transfer, size=1000, seed=0):
    """A handle, and the bytes that are behind it; the lease alone holds the buffer."""
    buffer = await filled(transfer, size, seed)
    handle, content = transfer.export(buffer), bytes(buffer.data)
    buffer.close()
    return handle, content


async def empty(*transfers):
    def left():
        return [one.stats() for one in transfers if one.stats().leases or one.stats().used_bytes]

    await until(lambda: not left(), "no lease and no buffer is left")


def lost(call):
    """``call`` fails as a fetch of what is no more."""

    async def check():
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.code == "transfer_failed"

    return check()


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_a_round_trip_of_every_dtype_and_shape(backend, dtype):
    async def main():
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

    run(main())


def test_both_event_loops(backend):
    async def main():
        async with transfers(backend) as (owner, receiver):
            handle, content = await exported(owner, 3 * MIB)
            (buffer,) = await receiver.fetch([handle])
            assert buffer.data == content

    for loop in ("uvloop", "asyncio"):
        run(main(), loop=loop)


def test_handles_cross_the_wire(backend):
    async def main():
        async with transfers(backend) as (owner, receiver):
            handle, content = await exported(owner)
            sent = msgspec.msgpack.decode(msgspec.msgpack.encode(handle), type=TensorHandle)
            (buffer,) = await receiver.fetch([sent])
            assert buffer.data == content

    run(main())


def test_a_tensor_larger_than_a_slab(backend):
    async def main():
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

    run(main())


def test_many_small_items_in_one_fetch(backend):
    async def main():
        async with transfers(backend) as (owner, receiver):
            items = [await exported(owner, 1 + 17 * number, number) for number in range(300)]
            got = await receiver.fetch([handle for handle, _ in items])
            assert [bytes(buffer.data) for buffer in got] == [content for _, content in items]
            for buffer in got:
                buffer.close()
            await empty(owner, receiver)
            assert receiver.stats().fetched == 300

    run(main())


def test_from_several_owners_at_once_and_from_oneself(backend):
    async def main():
        async with transfers(backend, 3) as made:
            items = [await exported(one, 100_000, seed) for seed, one in enumerate(made)]
            got = await made[2].fetch([handle for handle, _ in items])
            assert [bytes(buffer.data) for buffer in got] == [content for _, content in items]
            for buffer in got:
                buffer.close()
            await empty(*made)

    run(main())


def test_many_fetches_at_the_same_time(backend):
    async def main():
        async with transfers(backend, 3, arena_bytes=32 * MIB) as (left, right, receiver):
            items = [await exported((left, right)[n % 2], 1 + 5003 * n, n) for n in range(80)]

            async def one(handle, content):
                (buffer,) = await receiver.fetch([handle])
                assert buffer.data == content
                buffer.close()

            await asyncio.gather(*(one(*item) for item in items))
            await empty(left, right, receiver)

    run(main())


def test_buffers_are_shared_and_freed_by_their_last_holder(backend):
    async def main():
        async with transfers(backend, 1) as (one,):
            buffer = await filled(one, 1000)
            other = buffer.share()
            assert one.stats().buffers == 1, "no copy"
            buffer.close()
            buffer.close()
            assert one.stats().used_bytes == 1024, "closing twice gives back one reference"
            buffer, third = other, other.share()
            third.data[0] = 77
            assert buffer.data[0] == 77
            for holder in (buffer, third):
                holder.close()
            assert one.stats().used_bytes == 0
            with pytest.raises(ValueError, match="closed"):
                _ = buffer.data
            with pytest.raises(ValueError, match="closed"):
                buffer.share()

    run(main())


def test_the_lease_holds_the_buffer_until_it_was_fetched(backend):
    async def main():
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

    run(main())


def test_one_buffer_exported_twice_is_fetched_twice(backend):
    async def main():
        async with transfers(backend) as (owner, receiver):
            buffer = await filled(owner, 500)
            handles = [owner.export(buffer), owner.export(buffer)]
            for copy in await receiver.fetch(handles):
                assert copy.data == buffer.data
            assert owner.stats().buffers == 1

    run(main())


def test_a_second_fetch_fails_whoever_asks(backend):
    async def main():
        async with transfers(backend, 3) as (owner, first, second):
            handle, _ = await exported(owner)
            await first.fetch([handle])
            await lost(second.fetch([handle]))
            await lost(owner.fetch([handle]))
            assert second.stats().used_bytes == 0

    run(main())


def test_one_ended_lease_fails_the_whole_fetch_and_leaves_nothing(backend):
    async def main():
        async with transfers(backend) as (owner, receiver):
            handles = [(await exported(owner, 1000, n))[0] for n in range(5)]
            owner.release(handles[3])
            await lost(receiver.fetch(handles))
            await empty(receiver)
            assert owner.stats().leases == 4, "the others may still be fetched"
            assert len(await receiver.fetch(handles[:3] + handles[4:])) == 4

    run(main())


def test_release_ends_a_lease_once_and_only_ones_own(backend):
    async def main():
        async with transfers(backend) as (owner, receiver):
            handle, _ = await exported(owner)
            receiver.release(handle)
            assert owner.stats().leases == 1
            owner.release(handle)
            owner.release(handle)
            owner.release(msgspec.structs.replace(handle, lease=99))
            assert (owner.stats().leases, owner.stats().used_bytes) == (0, 0)
            await lost(receiver.fetch([handle]))

    run(main())


def test_a_lease_expires(backend):
    async def main():
        async with transfers(backend, lease_s=0.2) as (owner, receiver):
            before = time.time()
            handle, _ = await exported(owner)
            assert before + 0.15 < handle.expires_unix_s < time.time() + 0.25
            await empty(owner)
            assert time.time() >= before + 0.19
            assert owner.stats().expired == 1
            await lost(receiver.fetch([handle]))
            await empty(receiver)

    run(main())


def test_memory_that_was_used_anew_is_never_taken_for_the_old(backend):
    async def main():
        async with transfers(backend, arena_bytes=MIB) as (owner, receiver):
            old, _ = await exported(owner, 900_000, 1)
            owner.release(old)
            new, content = await exported(owner, 900_000, 2)
            await lost(receiver.fetch([old]))
            (buffer,) = await receiver.fetch([new])
            assert buffer.data == content

    run(main())


def test_a_lease_that_ends_while_its_bytes_move(backend):
    async def main():
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

    run(main())


def test_an_owner_that_closed(backend):
    async def main():
        async with transfers(backend, 3) as (owner, known, stranger):
            first, _ = await exported(owner)
            (await known.fetch([first]))[0].close()
            handle, _ = await exported(owner)
            await owner.close()
            begun = time.monotonic()
            for receiver in (known, stranger, known):
                await lost(receiver.fetch([handle]))
            assert time.monotonic() - begun < 5
            await empty(known, stranger)

    run(main())


def test_a_full_arena_serves_in_order(backend):
    async def main():
        async with transfers(backend, 1, arena_bytes=MIB) as (one,):
            held = [await filled(one, MIB // 4) for _ in range(4)]
            order = []

            async def take(name, size):
                buffers = await one.allocate([(size,)], "uint8")
                order.append(name)
                return buffers[0]

            tasks = [asyncio.create_task(take(*what)) for what in (("big", MIB // 2), ("small", 64), ("last", 64))]
            await until(lambda: one.stats().waiting == 3, "all wait")
            held[0].close()
            held[2].close()
            await asyncio.sleep(0)
            assert order == [], "room for the small ones, but the big one is first, and its room is in two parts"
            held[1].close()
            taken = await asyncio.gather(*tasks)
            assert order == ["big", "small", "last"]
            assert one.stats().waiting == 0
            for buffer in [*taken, held[3]]:
                buffer.close()
            await empty(one)

    run(main())


def test_room_that_a_receiver_makes_reaches_who_waits(backend):
    async def main():
        async with transfers(backend, arena_bytes=MIB) as (owner, receiver):
            handle, _ = await exported(owner, 800_000)
            waiting = asyncio.create_task(owner.allocate([(800_000,)], "uint8"))
            await until(lambda: owner.stats().waiting, "it waits")
            await receiver.fetch([handle])
            begun = time.monotonic()
            await waiting
            assert time.monotonic() - begun < 1

    run(main())


def test_waiting_ends_at_its_limit_and_the_queue_is_bounded(backend):
    async def main():
        async with transfers(backend, 1, arena_bytes=MIB, arena_wait_s=0.2, arena_queue=2) as (one,):
            buffer = await filled(one, MIB)
            tasks = [asyncio.create_task(one.allocate([(64,)], "uint8")) for _ in range(2)]
            await until(lambda: one.stats().waiting == 2, "both wait")
            with pytest.raises(Unavailable, match="already wait") as caught:
                await one.allocate([(64,)], "uint8")
            assert caught.value.code == "arena_full"
            for task in tasks:
                with pytest.raises(Unavailable, match=r"0\.2 s") as caught:
                    await task
                assert (caught.value.code, caught.value.status) == ("arena_full", 503)
            buffer.close()
            assert (one.stats().waiting, one.stats().used_bytes) == (0, 0)

    run(main())


def test_more_than_the_arena_could_ever_hold(backend):
    async def main():
        async with transfers(backend, 1) as (one,):
            with pytest.raises(PayloadTooLarge):
                await one.allocate([(8 * MIB + 1,)], "uint8")
            with pytest.raises(PayloadTooLarge):
                await one.allocate([(MIB,)] * 9, "uint8")
            for buffer in await one.allocate([(MIB,)] * 8, "uint8"):
                buffer.close()
            assert one.stats().reserved_bytes == one.stats().capacity_bytes == 8 * MIB
            (whole,) = await one.allocate([(8 * MIB,)], "uint8")
            whole.close()

    run(main())


def test_caches_are_asked_before_anybody_waits(backend):
    async def main():
        async with transfers(backend, 1, arena_bytes=MIB) as (one,):
            cached = [await filled(one, MIB // 4) for _ in range(4)]
            asked = []

            def reclaim(missing):
                asked.append(missing)
                while missing > 0 and cached:
                    missing -= len(cached[0].data)
                    cached.pop(0).close()

            one.on_pressure(reclaim)
            (buffer,) = await one.allocate([(MIB // 2,)], "uint8")
            assert asked == [MIB // 2]
            assert len(cached) == 2
            rest = await one.allocate([(64,)], "uint8")
            assert asked == [MIB // 2, 64]
            for each in (buffer, *rest, *cached):
                each.close()

    run(main())


def test_a_cache_whose_buffer_is_let_go_by_its_user_is_asked_again(backend):
    async def main():
        async with transfers(backend, 1, arena_bytes=MIB) as (one,):
            cached = [await filled(one, MIB)]
            using = cached[0].share()

            def reclaim(missing):
                if cached and released:
                    cached.pop().close()

            released = []
            one.on_pressure(reclaim)
            waiting = asyncio.create_task(one.allocate([(64,)], "uint8"))
            await until(lambda: one.stats().waiting, "it waits")
            released.append(True)
            using.close()
            await waiting

    run(main())


def test_cancelling_who_waits_takes_nothing(backend):
    async def main():
        async with transfers(backend, 1, arena_bytes=MIB) as (one,):
            buffer = await filled(one, MIB)
            tasks = [asyncio.create_task(one.allocate([(MIB // 2,)], "uint8")) for _ in range(3)]
            await until(lambda: one.stats().waiting == 3, "all wait")
            tasks[0].cancel()
            await until(lambda: one.stats().waiting == 2, "one left")
            buffer.close()
            tasks[1].cancel()  # in the moment in which it got its room
            (last,) = await tasks[2]
            assert all(task.cancelled() for task in tasks[:2])
            last.close()
            assert one.stats().used_bytes == 0

    run(main())


def test_cancelling_a_fetch_leaks_nothing(backend):
    async def main():
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

    run(main())


def test_malformed_handles_harm_nothing(backend):
    chance = random.Random(4)

    async def main():
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
            bad += [change(handle, location=chance.randbytes(chance.randrange(600))) for _ in range(100)]
            for _ in range(100):
                location = bytearray(handle.location)
                location[chance.randrange(min(40, len(location)))] ^= 1 << chance.randrange(8)
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
            if owner.stats().leases:
                (buffer,) = await receiver.fetch([handle])
                assert buffer.data == content

    run(main())


def test_a_wrong_shape_gets_no_bytes_beyond_the_owners_memory(backend):
    async def main():
        async with transfers(backend, arena_bytes=4 * MIB) as (owner, receiver):
            handle, _ = await exported(owner)
            with pytest.raises(TriptychError):
                await receiver.fetch([msgspec.structs.replace(handle, shape=(4 * MIB + 64,))])
            with pytest.raises(TriptychError):
                await receiver.fetch([msgspec.structs.replace(handle, shape=(3 * MIB,), dtype="float32")])
            await empty(receiver)

    run(main())


def test_closing_ends_those_who_wait_and_those_who_fetch(backend):
    async def main():
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

    run(main())


def test_only_buffers_of_ones_own_can_be_exported(backend):
    async def main():
        async with transfers(backend) as (owner, receiver):
            buffer = await filled(owner, 10)
            with pytest.raises(ValueError, match="own arena"):
                receiver.export(buffer)
            buffer.close()
            with pytest.raises(ValueError, match="closed"):
                owner.export(buffer)

    run(main())


def test_three_thousand_small_hand_overs_without_growth(backend):
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
            assert owner.stats().reserved_bytes <= 2 * MIB

    run(main())
