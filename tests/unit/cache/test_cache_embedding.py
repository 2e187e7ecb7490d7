"""Errors of shared work reach the right callers, and no reference is left."""

import asyncio
import gc

import pytest

from support.loops import until
from triptych.cache.embedding import EmbeddingCache
from triptych.contracts.errors import Unavailable


class Block:
    """A buffer whose references are counted."""

    def __init__(self, name, alive):
        self.data, self._name, self._alive, self._open = b"1234", name, alive, True
        alive.append(name)

    def share(self):
        return Block(self._name, self._alive)

    def close(self):
        if self._open:
            self._alive.remove(self._name)
        self._open = False


class Maker:
    """Makes blocks once ``go`` is set; a group with a name that begins with "bad" fails as a whole."""

    def __init__(self):
        self.calls = []
        self.alive = []
        self.go = asyncio.Event()

    async def __call__(self, names):
        self.calls.append(list(names))
        await self.go.wait()
        if bad := [name for name in names if name.startswith("bad")]:
            raise ValueError(bad[0])
        return [Block(name, self.alive) for name in names]


async def outcomes(cache, maker, *groups):
    """Returns what a caller for each of ``groups`` got. All have called, in this order, before anything is made."""
    tasks = [asyncio.create_task(cache.get(group, maker)) for group in groups]
    await asyncio.sleep(0)
    maker.go.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for one in found:
        if isinstance(one, list):
            for block in one:
                block.close()
    return [str(one) if isinstance(one, Exception) else "made" for one in found]


async def close(cache, maker):
    await cache.close()
    assert maker.alive == [], "every reference was given back"


@pytest.mark.parametrize("capacity", [0, 1 << 20])
async def test_an_error_reaches_only_callers_that_may_have_caused_it(capacity):
    cache, maker = EmbeddingCache(capacity), Maker()
    groups = [["bad", "x", "y"], ["x"], ["y", "z", "x"], ["y", "x", "bad"], ["bad"], ["x", "bad2"]]
    said = await outcomes(cache, maker, *groups)
    assert said == ["bad", "made", "made", "bad", "bad", "bad2"]
    assert maker.calls[:3] == [["bad", "x", "y"], ["z"], ["bad2"]]
    assert sorted(maker.calls[3:]) == [["bad"], ["x"], ["y"]], "each of what was lost once more, by itself"
    await close(cache, maker)


async def test_a_retry_joins_work_that_has_started_since():
    cache, maker = EmbeddingCache(1 << 20), Maker()
    assert await outcomes(cache, maker, ["bad", "x"], ["x"], ["x"]) == ["bad", "made", "made"]
    assert maker.calls == [["bad", "x"], ["x"]]
    await close(cache, maker)


async def test_cancelling_the_last_waiter_of_a_retry_ends_the_work():
    cache, failing, own = EmbeddingCache(1 << 20), Maker(), Maker()
    bad = asyncio.create_task(cache.get(["bad", "x"], failing))
    await until(lambda: failing.calls, "the group is being made")
    sound = asyncio.create_task(cache.get(["x"], own))
    await until(lambda: cache.shared == 1, "it waits for its part of the group")
    failing.go.set()
    await until(lambda: own.calls == [["x"]], "its part is being made again, by itself")
    assert isinstance(bad.exception(), ValueError)
    sound.cancel()
    await asyncio.wait([sound])
    assert sound.cancelled()
    assert not cache.holds("x"), "the work ended with its last waiter"
    await close(cache, own)


async def test_nothing_is_retried_while_the_cache_closes():
    cache, maker = EmbeddingCache(1 << 20), Maker()
    tasks = [asyncio.create_task(cache.get(names, maker)) for names in (["x", "y"], ["x"])]
    await until(lambda: maker.calls and cache.shared == 1, "both wait")
    await cache.close()
    for task in tasks:
        with pytest.raises(Unavailable):
            await task
    assert len(maker.calls) == 1
    await close(cache, maker)


async def test_a_clear_keeps_nothing_of_what_is_under_way_and_nobody_joins_it():
    cache, maker = EmbeddingCache(1 << 10), Maker()
    waiting = asyncio.create_task(cache.get(["a"], maker))
    await until(lambda: maker.calls == [["a"]], "it is being made")
    cache.clear()
    late = asyncio.create_task(cache.get(["a"], maker))
    await until(lambda: maker.calls == [["a"], ["a"]], "it is made again for who came later")
    maker.go.set()
    for block in [*await waiting, *await late]:
        block.close()
    assert len(cache.store) == 1, "what was made after the clear is kept"
    cache.clear()
    assert maker.alive == []
    await close(cache, maker)


async def test_each_caller_gets_its_names_in_its_order():
    cache, maker = EmbeddingCache(1 << 20), Maker()
    maker.go.set()
    for names in (["b", "a", "b"], ["c", "a"]):
        blocks = await cache.get(names, maker)
        assert [block._name for block in blocks] == names
        for block in blocks:
            block.close()
    assert maker.calls == [["b", "a"], ["c"]]
    await close(cache, maker)


async def test_room_is_made_until_all_that_is_missing_is_there():
    cache, maker = EmbeddingCache(1 << 20), Maker()
    maker.go.set()
    for block in await cache.get(["a", "b", "c"], maker):
        block.close()
    cache.reclaim(5)
    assert [cache.holds(name) for name in "abc"] == [False, False, True], "four bytes each, oldest first"
    cache.reclaim(100)
    assert not cache.holds("c")
    await close(cache, maker)


async def test_an_error_that_nobody_waits_for_is_not_complained_of(caplog):
    cache, begun = EmbeddingCache(0), asyncio.Event()

    async def fails_when_cancelled(names):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("too late") from None

    asking = asyncio.create_task(cache.get(["a"], fails_when_cancelled))
    await begun.wait()
    [flight] = cache._running
    asking.cancel()
    await asyncio.wait([asking, flight.task])
    await asyncio.sleep(0)
    del flight, asking
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_no_more_is_evicted_than_is_missing():
    cache, maker = EmbeddingCache(1 << 20), Maker()
    maker.go.set()
    for block in await cache.get(["a", "b"], maker):
        block.close()
    cache.reclaim(4)
    assert [cache.holds(name) for name in "ab"] == [False, True]
    await close(cache, maker)


async def test_each_name_lost_by_anothers_error_is_made_by_itself():
    cache, maker = EmbeddingCache(0), Maker()
    assert await outcomes(cache, maker, ["bad", "x", "y"], ["x", "y"]) == ["bad", "made"]
    assert sorted(maker.calls) == [["bad", "x", "y"], ["x"], ["y"]]
    await close(cache, maker)


async def test_the_next_caller_does_not_join_work_that_is_being_cancelled():
    cache, maker = EmbeddingCache(0), Maker()
    first = asyncio.create_task(cache.get(["a"], maker))
    await until(lambda: maker.calls, "it is being made")
    first.cancel()
    second = asyncio.create_task(cache.get(["a"], maker))
    maker.go.set()
    [block] = await second
    block.close()
    assert maker.calls == [["a"], ["a"]]
    await close(cache, maker)


async def test_embeddings_made_after_the_last_waiter_left_are_given_back():
    cache, maker = EmbeddingCache(0), Maker()

    async def unstoppable(names):
        try:
            return await maker(names)
        except asyncio.CancelledError:
            maker.go.set()
            return await maker(names)

    waiter = asyncio.create_task(cache.get(["a"], unstoppable))
    await until(lambda: maker.calls, "it is being made")
    waiter.cancel()
    await until(lambda: len(maker.calls) == 2 and not cache._running, "it was made all the same")
    await close(cache, maker)


async def test_a_name_may_need_no_buffer():
    cache = EmbeddingCache(1 << 20)

    async def nothing(names):
        return [None for _ in names]

    assert await cache.get(["a", "b"], nothing) == [None, None]
    await cache.close()
