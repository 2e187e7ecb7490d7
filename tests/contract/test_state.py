"""What every back end of shared state must do (``planes.state.base``)."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from support.loops import until, until_async
from support.states import opened, watched
from triptych.planes.state.base import (
    ENTRY_OVERHEAD_BYTES,
    MAX_KEY_BYTES,
    Bucket,
    EntryTooLarge,
    RevisionMismatch,
    StateFull,
)


async def test_an_entry_is_there_until_it_is_deleted(state_plane):
    async with opened(state_plane) as state, opened(state_plane) as other:
        assert await state.get("a") is None
        revision = await state.put("a", b"1")
        found = await other.get("a")
        assert (found.key, found.value, found.revision, found.left_s) == ("a", b"1", revision, None)
        assert await other.put("a", b"") > revision
        assert (await state.get("a")).value == b""
        await state.delete("a")
        await other.delete("a")
        assert await other.get("a") is None
        assert state.trouble() is other.trouble() is None


@pytest.mark.parametrize("key", ["a.b", "..", "/etc/passwd", "ä €", "*", ">", "x" * MAX_KEY_BYTES, "." * MAX_KEY_BYTES])
async def test_keys_are_any_text(state_plane, key):
    async with opened(state_plane) as state, watched(state) as seen:
        await state.put(key, b"1")
        assert (await state.get(key)).value == b"1"
        await until(lambda: seen.values == {key: b"1"}, "a watch tells the key")
        await state.delete(key)
        await until(lambda: not seen.values, "it is gone")


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("", {}),
        ("x" * (MAX_KEY_BYTES + 1), {}),
        ("\ud800", {}),
        *(("a", {"ttl_s": bad}) for bad in (0, -1, 1e300, float("nan"))),
    ],
)
async def test_what_no_back_end_takes_is_refused(state_plane, key, settings):
    async with opened(state_plane) as state:
        with pytest.raises(ValueError, match=r"1 to|lives for|surrogates"):
            await state.put(key, b"1", **settings)


async def test_a_write_may_say_which_revision_it_follows(state_plane):
    async with opened(state_plane) as state:
        first = await state.put("a", b"1", after=0)
        for wrong in (0, first + 1):
            with pytest.raises(RevisionMismatch):
                await state.put("a", b"2", after=wrong)
            with pytest.raises(RevisionMismatch):
                await state.delete("a", after=wrong)
        second = await state.put("a", b"2", after=first)
        assert (await state.get("a")).revision == second
        await state.delete("a", after=second)
        with pytest.raises(RevisionMismatch):
            await state.put("a", b"3", after=second)
        with pytest.raises(RevisionMismatch):
            await state.delete("a", after=second)
        assert await state.put("a", b"3", after=0) > second, "a key's revisions are never used again"


async def test_competing_writers_lose_no_update(state_plane):
    async def count(state, times):
        for _ in range(times):
            while True:
                found = await state.get("count")
                value, revision = (int(found.value), found.revision) if found else (0, 0)
                with contextlib.suppress(RevisionMismatch):
                    await state.put("count", b"%d" % (value + 1), after=revision)
                    break

    async with contextlib.AsyncExitStack() as stack:
        states = [await stack.enter_async_context(opened(state_plane)) for _ in range(4)]
        await asyncio.gather(*(count(state, 10) for state in states))
        assert (await states[0].get("count")).value == b"40"


async def test_one_of_many_creators_of_a_key_succeeds(state_plane):
    async with opened(state_plane) as state, opened(state_plane) as other:
        tries = [one.put("a", b"%d" % n, after=0) for n, one in enumerate([state, other] * 5)]
        done = await asyncio.gather(*tries, return_exceptions=True)
        won = [n for n, result in enumerate(done) if isinstance(result, int)]
        assert len(won) == 1
        assert all(isinstance(result, RevisionMismatch) for n, result in enumerate(done) if n not in won)
        assert (await state.get("a")).value == b"%d" % won[0]


async def test_an_entry_expires(state_plane):
    async with opened(state_plane) as state, watched(state) as seen:
        begun = time.monotonic()
        await state.put("b", b"2", ttl_s=600)
        await state.put("a", b"1", ttl_s=0.5)
        await until(
            lambda: "a" in seen.values or time.monotonic() > begun + 0.5, "it is seen, if there is time for that"
        )
        await until(lambda: "b" in seen.values, "the other is seen")
        assert 500 <= seen.left_s["b"] <= 600
        await until(lambda: seen.values == {"b": b"2"}, "it expires while it is watched")
        assert time.monotonic() - begun >= 0.45
        assert await state.get("a") is None
        async with watched(state) as late:
            await until(lambda: late.values == {"b": b"2"}, "nobody is told of it any more")
        revision = await state.put("a", b"3", after=0)
        assert (await state.get("a")).revision == revision


async def test_a_write_gives_an_entry_another_time(state_plane):
    async with opened(state_plane) as state, watched(state) as seen:
        await state.put("a", b"1", ttl_s=600)
        await state.put("b", b"1", ttl_s=0.3)
        await state.put("b", b"2")
        await until(lambda: seen.values == {"a": b"1", "b": b"2"}, "both are there")
        await state.put("a", b"2", ttl_s=0.3)
        await until(lambda: seen.values == {"b": b"2"}, "it expired")
        assert (await state.get("b")).left_s is None


async def test_a_watch_tells_all_that_is_there_and_then_each_change(state_plane):
    async with opened(state_plane) as state, watched(state) as early:
        await until(lambda: early.updates, "an empty bucket is told of as well")
        assert early.updates[0].is_complete
        assert early.updates[0].changed == ()
        for n in range(5):
            await state.put(f"k{n}", b"%d" % n)
        await state.delete("k0")
        async with opened(state_plane) as other, watched(other) as late, watched(other) as beside:
            there = {f"k{n}": b"%d" % n for n in range(1, 5)}
            await until(lambda: early.values == late.values == beside.values == there, "all know all")
            assert [one.is_complete for one in late.updates] == [True], "at once, in one update"
            await other.put("k1", b"new")
            await state.delete("k2")
            there |= {"k1": b"new"}
            del there["k2"]
            await until(lambda: early.values == late.values == beside.values == there, "all know of changes")
            assert not any(one.is_complete for one in late.updates[1:])


async def test_what_is_changed_often_is_seen_as_it_is_at_last(state_plane):
    async with opened(state_plane) as state, watched(state) as seen:
        for n in range(30):
            await state.put("a", b"%d" % n)
            if n % 10 == 5:
                await state.delete("a")
        await until(lambda: seen.values == {"a": b"29"}, "the last change is seen")


async def test_a_value_has_a_bound(state_plane):
    async with opened(state_plane) as state:
        await state.put("a", b"x" * 1000)
        with pytest.raises(EntryTooLarge, match="1001 bytes are more than 1000"):
            await state.put("a", b"y" * 1001)
        assert (await state.get("a")).value == b"x" * 1000


async def test_a_bucket_has_a_bound(state_plane):
    """It holds as many entries as its bound promises, never more bytes, and takes more when some are gone."""
    bucket = Bucket(name="small", max_entry_bytes=200, max_bytes=10 * (200 + ENTRY_OVERHEAD_BYTES))

    async def fill(state, size):
        for n in range(1000):
            try:
                await state.put(f"{size}-{n}", b"x" * size)
            except StateFull:
                return n
        raise AssertionError("there is no bound")

    async def has_room(state):
        try:
            await state.put("0-0", b"")
        except StateFull:
            return False
        return True

    async def main():
        async with opened(state_plane, bucket) as state, watched(state) as seen:
            large = await fill(state, 200)
            assert 10 <= large <= bucket.max_bytes // 200
            await until(lambda: len(seen.values) == large, "a watch holds what there is")
            await state.put("200-0", b"y" * 200)
            for n in range(large):
                await state.delete(f"200-{n}")
            small = await fill(state, 0)
            assert 10 <= small <= 50, "empty entries take room, too"
            await state.delete("0-0")
            await until_async(lambda: has_room(state), "there is room for another")

    await main()


async def test_expired_entries_make_room(state_plane):
    bucket = Bucket(name="short", max_entry_bytes=1000, max_bytes=4000)
    async with opened(state_plane, bucket) as state:

        async def is_full(ttl_s, key):
            try:
                await state.put(key, b"x" * 1000, ttl_s=ttl_s)
            except StateFull:
                return True
            return False

        for n in range(5):  # more than there is room for at once
            await is_full(0.3, f"{n}")
        for key in ("new", "newer"):
            deadline = time.monotonic() + 10
            while await is_full(None, key):
                assert time.monotonic() < deadline, "what has expired takes no room"
                await asyncio.sleep(0.02)


async def test_buckets_and_namespaces_do_not_see_each_other(state_plane):
    one, two = (Bucket(name=name, max_entry_bytes=10, max_bytes=10_000) for name in ("one", "two"))
    async with (
        opened(state_plane, one) as a,
        opened(state_plane, two) as b,
        opened(state_plane, one, "one-two") as c,
    ):
        await a.put("k", b"a")
        await b.put("k", b"b")
        assert await c.get("k") is None
        assert ((await a.get("k")).value, (await b.get("k")).value) == (b"a", b"b")


async def test_it_may_be_closed_twice(state_plane):
    state = state_plane.state()
    await state.put("a", b"1")
    async with watched(state) as seen:
        await until(lambda: seen.values, "it is seen")
    await state.close()
    await state.close()
