"""Shared state over NATS: servers that go away, come back with and without what they kept, and other clients."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import nats
import pytest
from nats.js import api

from support.buckets import BUCKET
from support.loops import until, until_async
from support.nats_server import nats_server
from support.states import opened, watched
from triptych.planes.nats.access import NatsSecrets, read_access
from triptych.planes.state import nats as state_nats
from triptych.planes.state.base import Bucket, EntryTooLarge, StateUnavailable
from triptych.planes.state.nats import NatsState

DURABLE = Bucket(name="durable", max_entry_bytes=1000, max_bytes=20_000, is_durable=True)


class Plane:
    def __init__(self, server):
        self.server = server

    def state(self, bucket=BUCKET):
        return NatsState(read_access(self.server.url, NatsSecrets()), "default", bucket)


@pytest.fixture
def plane(tmp_path):
    with nats_server(tmp_path) as server:
        yield Plane(server)


async def fails(state, limit_s=8.0):
    begun = time.monotonic()
    with pytest.raises(StateUnavailable):
        await state.put("x", b"1")
    assert time.monotonic() - begun < limit_s
    assert state.trouble()


async def works(state):
    """Once NATS is back."""

    async def done():
        try:
            await state.put("works", b"1")
        except StateUnavailable:
            return False
        return True

    await until_async(done, "a call succeeds")


@pytest.mark.parametrize("bucket", [BUCKET, DURABLE], ids=["memory", "durable"])
async def test_a_durable_bucket_outlives_the_server_and_another_does_not(plane, bucket, caplog):
    async with opened(plane, bucket) as state, watched(state) as seen:
        await state.put("a", b"1")
        await state.put("b", b"2", ttl_s=600)
        await until(lambda: len(seen.values) == 2, "both are seen")
        plane.server.stop()
        await fails(state)
        assert len(seen.values) == 2, "what is known stays"
        told = len(seen.updates)
        plane.server.start(keep_store=True)
        await until(lambda: len(seen.updates) > told, "the bucket is read again")
        assert seen.updates[told].is_complete
        assert seen.values == ({"a": b"1", "b": b"2"} if bucket.is_durable else {})
        await works(state)
        await until(lambda: "works" in seen.values, "changes are seen again")
        assert state.trouble() is None
    said = [record.getMessage() for record in caplog.records if "cannot read shared state" in record.getMessage()]
    assert len(said) == 1, "said once"


async def test_a_server_that_comes_back_empty_is_told_as_such(plane):
    async with opened(plane, DURABLE) as state, watched(state) as seen:
        await state.put("a", b"1")
        await until(lambda: seen.values, "it is seen")
        plane.server.stop()
        await fails(state)
        plane.server.start()
        await until(lambda: seen.updates[-1].is_complete and not seen.values, "the bucket is read again")
        await works(state)
        await until(lambda: seen.values == {"works": b"1"}, "changes are seen again")


async def test_entries_expire_while_nats_is_away(plane):
    async with opened(plane) as state, watched(state) as seen:
        await state.put("a", b"1", ttl_s=1.0)
        await state.put("b", b"2")
        await until(lambda: len(seen.values) == 2, "both are seen")
        plane.server.stop()
        await until(lambda: seen.values == {"b": b"2"}, "one has expired")
        assert not seen.updates[-1].is_complete


async def test_a_watch_may_begin_while_nats_is_away(plane):
    plane.server.stop()
    async with opened(plane) as state, watched(state) as seen:
        await until(lambda: seen.updates, "who watches is not kept waiting")
        assert seen.updates[0].is_complete
        await fails(state)
        plane.server.start()
        await works(state)
        await until(lambda: seen.values == {"works": b"1"}, "it is seen")
        assert state.trouble() is None


async def test_a_frozen_server_costs_a_call_a_bounded_time(plane, monkeypatch):
    monkeypatch.setattr(state_nats, "CALL_TIMEOUT_S", 0.5)
    async with opened(plane) as state:
        await state.put("a", b"1")
        plane.server.freeze()
        await fails(state, 2.0)
        plane.server.thaw()
        await works(state)


async def test_a_lost_bucket_is_made_again(plane):
    async with opened(plane) as state, watched(state) as seen:
        await state.put("a", b"1")
        await until(lambda: seen.values, "it is seen")
        client = await nats.connect(plane.server.url)
        await client.jetstream().delete_stream("KV_triptych_things-default")
        await client.close()
        await works(state)
        await until(lambda: seen.values == {"works": b"1"}, "the watch follows the new one")


async def test_what_other_clients_wrote_is_ignored_with_one_warning_each(plane, caplog):
    async with opened(plane) as state, watched(state) as seen:
        await state.put("good", b"1")
        client = await nats.connect(plane.server.url)
        bucket = client.jetstream()

        async def write(key, value=b"", **headers):
            headers = {name.replace("_", "-"): text for name, text in headers.items()}
            await bucket.publish(f"$KV.triptych_things-default.{key}", value, headers=headers or None)

        for _ in range(2):
            await write("plain", b"no time to live")
            for text in ("x", "nan", "inf", "-1", "0", "1e999", "1e12", ""):
                await write(f"lives{text.replace('-', 'minus')}", Triptych_Lives_S=text)
            await write("a.b", Triptych_Lives_S="never")
            await write("=zz", Triptych_Lives_S="never")
            await write("long", b"x" * 1001, Triptych_Lives_S="never")
        await client.close()
        await state.put("last", b"2")
        await until(lambda: "last" in seen.values, "what comes later is seen")
        assert set(seen.values) == {"good", "last"}
        assert await state.get("plain") is None
        async with watched(state) as late:
            await until(lambda: set(late.values) == {"good", "last"}, "they are left out there, too")
        said = [record.getMessage() for record in caplog.records if "ignoring key" in record.getMessage()]
        assert len(said) == len(set(said)) == 12
        await state.put("plain", b"3")
        await until(lambda: seen.values.get("plain") == b"3", "a write takes its place")


async def test_a_bucket_without_times_to_live_is_refused(plane):
    """As an old server makes it, or an operator."""
    client = await nats.connect(plane.server.url)
    await client.jetstream().add_stream(
        name="KV_triptych_things-default",
        subjects=["$KV.triptych_things-default.>"],
        storage=api.StorageType.MEMORY,
        max_msgs_per_subject=1,
    )
    await client.close()
    async with opened(plane) as state, watched(state) as seen:
        with pytest.raises(StateUnavailable, match=r"NATS 2\.11 or later"):
            await state.put("a", b"1")
        await until(lambda: seen.updates, "who watches is not kept waiting")


async def test_what_an_operator_deletes_is_gone(plane):
    async with opened(plane) as state, watched(state) as seen:
        for key in ("a", "b"):
            await state.put(key, b"1")
        await until(lambda: len(seen.values) == 2, "both are seen")
        client = await nats.connect(plane.server.url)
        bucket = await client.jetstream().key_value("triptych_things-default")
        await bucket.delete("a")
        await bucket.purge("b")
        await client.close()
        await until(lambda: not seen.values, "both are gone")
        assert await state.get("a") is await state.get("b") is None
        await state.put("a", b"2", after=0)
        await until(lambda: seen.values == {"a": b"2"}, "it may come again")


async def test_a_value_that_the_server_does_not_take_is_told_from_one_that_is_away(tmp_path):
    bucket = Bucket(name="large", max_entry_bytes=100_000, max_bytes=1_000_000)
    with nats_server(tmp_path, "max_payload: 8192") as server:
        async with opened(Plane(server), bucket) as state:
            with pytest.raises(EntryTooLarge, match="max_payload"):
                await state.put("a", b"x" * 8000)
            await state.put("a", b"x" * 7000)
            assert len((await state.get("a")).value) == 7000
            assert state.trouble() is None


async def test_a_login_without_the_rights_is_told_in_bounded_time(tmp_path, monkeypatch):
    monkeypatch.setattr(state_nats, "CALL_TIMEOUT_S", 1.0)
    rights = 'permissions: { publish: { deny: "$KV.triptych_things-default.>" } }'
    with nats_server(tmp_path, f"authorization {{ users: [ {{ user: a, password: b, {rights} }} ] }}") as server:
        access = read_access(server.url.replace("://", "://a@"), NatsSecrets(password="b"))
        plane = SimpleNamespace(state=lambda: NatsState(access, "default", BUCKET))
        async with opened(plane) as state, watched(state) as seen:
            await until(lambda: seen.updates, "it may read")
            await fails(state, 4.0)


async def test_without_jetstream_it_says_what_to_do(tmp_path):
    with nats_server(tmp_path, jetstream=False) as server:
        async with opened(Plane(server)) as state:
            with pytest.raises(StateUnavailable, match="--jetstream"):
                await state.put("a", b"1")


async def test_a_cancelled_call_leaves_a_state_that_works(plane):
    async with opened(plane) as state:
        for delay_s in (0.0, 0.001, 0.003):
            put = asyncio.create_task(state.put("a", b"1"))
            await asyncio.sleep(delay_s)
            put.cancel()
            await asyncio.wait([put])
        assert await state.put("a", b"2")
