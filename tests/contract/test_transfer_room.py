"""What every transfer must do about room: sharing, bounds, waiting in line (``transfer.base``)."""

from __future__ import annotations

import asyncio

import pytest
from transfer_support import MIB, empty, exported, filled, over_all_backends, transfers

from support.loops import until
from triptych.contracts.errors import PayloadTooLarge, Unavailable

pytestmark = over_all_backends


async def test_buffers_are_shared_and_freed_by_their_last_holder(backend):
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


async def test_a_full_arena_serves_in_order(backend):
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


async def test_room_that_a_receiver_makes_reaches_who_waits(backend):
    async with transfers(backend, arena_bytes=MIB, lease_s=600) as (owner, receiver):
        handle, _ = await exported(owner, 800_000)
        waiting = asyncio.create_task(owner.allocate([(800_000,)], "uint8"))
        await until(lambda: owner.stats().waiting, "it waits")
        await receiver.fetch([handle])
        await waiting


async def test_waiting_ends_at_its_limit_and_the_queue_is_bounded(backend):
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


async def test_more_than_the_arena_could_ever_hold(backend):
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


async def test_caches_are_asked_before_anybody_waits(backend):
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


async def test_a_cache_whose_buffer_is_let_go_by_its_user_is_asked_again(backend):
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


async def test_cancelling_who_waits_takes_nothing(backend):
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
