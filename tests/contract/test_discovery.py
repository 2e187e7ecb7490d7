"""What every back end of discovery must do (``planes.discovery.base``)."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from support.instances import CARD, instance
from support.loops import SOON_S, until
from triptych.contracts.errors import ConfigError


@contextlib.asynccontextmanager
async def watching(discovery):
    """``async seen(ids)``: wait for the snapshot with exactly these ids, and return it."""
    snapshots = discovery.watch()

    async def seen(*ids):
        async with asyncio.timeout(SOON_S):
            async for snapshot in snapshots:
                if tuple(one.id for one in snapshot) == tuple(sorted(ids)):
                    return snapshot
        raise AssertionError("the watch ended")

    try:
        yield seen
    finally:
        await snapshots.aclose()


async def test_the_first_snapshot_comes_at_once_also_when_empty(discovery_plane):
    async with watching(discovery_plane.discovery()) as seen:
        assert await seen() == ()


async def test_what_nobody_serves_is_certain_after_a_while(discovery_plane):
    discovery = discovery_plane.discovery()
    async with watching(discovery) as seen:
        await seen()
        await until(lambda: discovery.doubt("demo") is None, "a new watch has settled")


async def test_instances_appear_and_are_withdrawn(discovery_plane):
    discovery = discovery_plane.discovery()
    async with watching(discovery) as seen:
        await seen()
        first, second = instance("b"), instance("a")
        lease = await discovery.register(first)
        assert await seen("b") == (first,)
        other = await discovery_plane.discovery().register(second)
        assert await seen("a", "b") == (second, first), "sorted by id"
        await lease.withdraw()
        await seen("a")
        await lease.withdraw()
        await other.withdraw()
        await seen()


async def test_a_later_watcher_sees_the_instances_that_are_there(discovery_plane):
    lease = await discovery_plane.discovery().register(instance("one"))
    async with watching(discovery_plane.discovery()) as seen:
        assert await seen("one") == (instance("one"),)
    await lease.withdraw()


async def test_another_checkpoint_under_the_name_of_one_that_is_served_is_refused(discovery_plane):
    """Frontends would make prompts for the one with the tokenizer of the other."""

    def of(name, digest, model="demo"):
        return instance(name, model=msgspec.structs.replace(CARD, name=model, path=f"/{name}", files_digest=digest))

    discovery = discovery_plane.discovery()
    leases = [await discovery.register(of("first", "aa"))]
    with pytest.raises(ConfigError, match=r"'first' serves another checkpoint as 'demo'.* /first .* /second"):
        await discovery.register(of("second", "bb"))
    fine = (of("same-elsewhere", "aa"), of("under-another-name", "bb", "other"), of("does-not-say", ""))
    leases += [await discovery.register(one) for one in fine]
    for lease in leases:
        await lease.withdraw()


async def test_other_weights_under_the_name_of_a_model_that_is_served_are_refused(discovery_plane):
    """A fine-tune: tokenizer and configs are the same."""
    discovery = discovery_plane.discovery()
    leases = [await discovery.register(instance("first", weights=(("1.bin", "aa"), ("2.bin", "bb"))))]
    with pytest.raises(ConfigError, match=r"'first' serves other weights as 'demo': 2\.bin in its"):
        await discovery.register(instance("second", weights=(("1.bin", "aa"), ("2.bin", "cc"))))
    encodes = instance("enc", "e", weights=(("1.bin", "aa"),))
    fine = (instance("more", weights=(("0.bin", "xx"), ("1.bin", "aa"))), encodes, instance("none"))
    leases += [await discovery.register(one) for one in fine]
    for lease in leases:
        await lease.withdraw()


async def test_namespaces_do_not_see_each_other(discovery_plane):
    here, there = discovery_plane.discovery("here"), discovery_plane.discovery("there")
    leases = [await here.register(instance("mine")), await there.register(instance("yours"))]
    async with watching(here) as seen_here, watching(there) as seen_there:
        await seen_here("mine")
        await seen_there("yours")
    for lease in leases:
        await lease.withdraw()
