"""The rooms of the mock engine: who waits for whom, and what is left when one leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from support.loops import until
from triptych.contracts.errors import KvLost, TriptychError
from triptych.contracts.request import KvHandle, KvRoom
from triptych.engines.mock import rendezvous
from triptych.engines.mock.rendezvous import Offer, Rooms, take

OFFER = Offer(KvHandle(protocol="mock", request_id="r", params=b"x"), 9, 4)


async def nothing(kv: KvHandle) -> None:
    """Reads no cache."""


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Rooms, str]]:
    rooms = Rooms()
    address = await rooms.start()
    try:
        yield rooms, address
        await until(lambda: not len(rooms), "no room is left")
    finally:
        await rooms.close()
        await rooms.close()


async def give(rooms: Rooms, number: int = 7) -> None:
    with rooms.giving(number) as room:
        await room.hand_over(OFFER)


@pytest.mark.parametrize("first", ["giver", "taker"])
async def test_either_may_come_first(first: str) -> None:
    async with opened() as (rooms, address):
        room = KvRoom(bootstrap=address, number=7)
        parts = {"giver": lambda: give(rooms), "taker": lambda: take(room, nothing)}
        one = asyncio.create_task(parts.pop(first)())
        await until(lambda: len(rooms) == 1, "the first one waits")
        [other] = parts.values()
        answers = await asyncio.gather(one, other())
        assert OFFER in answers


async def test_a_giver_that_leaves_is_told_and_a_taker_that_leaves_too() -> None:
    async with opened() as (rooms, address):
        room = KvRoom(bootstrap=address, number=7)
        with rooms.giving(7):
            taking = asyncio.create_task(take(room, nothing))
            await until(lambda: rooms._rooms[7].has_taker, "the taker waits")
        with pytest.raises(KvLost):
            await taking

        async def fails(kv: KvHandle) -> None:
            raise KvLost("no way")

        giving = asyncio.create_task(give(rooms))
        with pytest.raises(KvLost, match="no way"):
            await take(room, fails)
        with pytest.raises(KvLost):
            await giving

        taking = asyncio.create_task(take(room, nothing))
        await until(lambda: len(rooms) == 1, "it waits for a giver that has not come")
        taking.cancel()
        await asyncio.wait([taking])


async def test_a_giver_that_is_cancelled_while_the_taker_reads_disturbs_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened() as (rooms, address):
        reads, may_end = asyncio.Event(), asyncio.Event()

        async def slowly(kv: KvHandle) -> None:
            reads.set()
            await may_end.wait()

        giving = asyncio.create_task(give(rooms))
        taking = asyncio.create_task(take(KvRoom(bootstrap=address, number=7), slowly))
        await reads.wait()
        giving.cancel()
        await asyncio.wait([giving])
        may_end.set()
        assert await taking == OFFER
        await until(lambda: not rooms._takers, "nobody is at the address")
    assert not caplog.records


async def test_a_room_is_for_one_of_each() -> None:
    async with opened() as (rooms, address):
        room = KvRoom(bootstrap=address, number=7)
        with rooms.giving(7) as mine:
            with pytest.raises(TriptychError, match="one room"):
                await give(rooms)
            taking = asyncio.create_task(take(room, nothing))
            await until(lambda: mine.has_taker, "one is there")
            with pytest.raises(KvLost):
                await take(room, nothing)
            await mine.hand_over(OFFER)
        assert await taking == OFFER


async def test_a_taker_without_a_known_room_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "HELLO_S", 0.02)
    async with opened() as (rooms, address):
        host, _, port = address.rpartition(":")
        for words in (b"", b"abc"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(words)
            assert await reader.read() == b""
            writer.close()
        monkeypatch.setattr(rendezvous, "MAX_TAKERS", 0)
        with pytest.raises(KvLost):
            await take(KvRoom(bootstrap=address, number=7), nothing)
        assert not len(rooms)
    for gone in (address, "nowhere", "127.0.0.1:x"):
        with pytest.raises(KvLost):
            await take(KvRoom(bootstrap=gone, number=7), nothing)


async def test_closing_sends_takers_away() -> None:
    rooms = Rooms()
    room = KvRoom(bootstrap=await rooms.start(), number=7)
    taking = asyncio.create_task(take(room, nothing))
    await until(lambda: len(rooms) == 1, "it waits")
    await rooms.close()
    with pytest.raises(KvLost):
        await taking
