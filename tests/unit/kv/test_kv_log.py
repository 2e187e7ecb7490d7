"""Tests a worker's log of KV changes as its followers see it."""

from __future__ import annotations

from contextlib import aclosing

from msgspec.structs import replace

from triptych.contracts.kv_events import KvChange, Load, packed
from triptych.contracts.request import GenerateRequest, KvHandle, Sampling
from triptych.kv.log import KvLog
from triptych.planes.events.base import EventPace
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.events.request import updates


def change(*hashes: int) -> KvChange:
    return KvChange(0, True, packed(list(hashes)))


async def test_a_follower_gets_a_snapshot_and_then_every_change_in_order() -> None:
    held = [change(1)]
    log = KvLog(lambda: held)
    async with aclosing(log.follow()) as batches:
        first = await anext(batches)
        assert (first.sequence, first.reset, first.changes) == (0, True, held)
        log.publish([change(2)])
        log.publish([change(3), change(4)])
        log.publish([])
        second = await anext(batches)
        assert (second.sequence, second.reset) == (1, False)
        assert second.changes == [change(2), change(3), change(4)]
        log.reset()
        third = await anext(batches)
        assert (third.sequence, third.reset) == (2, True)
        log.close()
        assert await anext(batches, None) is None


async def test_a_slow_follower_gets_a_snapshot_and_memory_stays_bounded() -> None:
    log = KvLog(lambda: [change(99)], max_behind=3)
    async with aclosing(log.follow()) as slow, aclosing(log.follow()) as quick:
        await anext(slow)
        await anext(quick)
        for number in range(10):
            log.publish([change(number)])
            assert (await anext(quick)).changes == [change(number)]
        late = await anext(slow)
        assert (late.reset, late.changes, late.sequence) == (True, [change(99)], 1)


async def test_updates_carry_changes_at_once_and_load_when_it_changes() -> None:
    pace = EventPace(load_period_s=0.01, heartbeat_s=0.03)
    log, account = KvLog(list), LoadTracker()
    async with aclosing(updates(log, account, "me", pace)) as told:
        first = await anext(told)
        assert first.kv is not None
        assert first.kv.reset
        assert first.load == Load()
        request = GenerateRequest(
            id="r", model="m", token_ids=[1, 2], sampling=Sampling(max_tokens=1), prompt_tokens=20, frontend_id="other"
        )
        with account.track(replace(request, frontend_id="me")), account.track(request) as entry:
            assert (await anext(told)).load == Load(20, 20, 1)
            entry.prefilled()
            entry.prefilled()
            assert (await anext(told)).load == Load(0, 20, 1)
        assert (await anext(told)).load == Load()
        quiet = await anext(told)
        assert (quiet.kv, quiet.load) == (None, None), "a sign of life"
        log.publish([change(5)])
        assert (await anext(told)).kv is not None
        log.close()
        assert await anext(told, None) is None


def test_a_request_prefilled_elsewhere_adds_no_waiting_prefill() -> None:
    account = LoadTracker()
    handle = KvHandle(protocol="mock", request_id="r", params=b"")
    request = GenerateRequest(
        id="r", model="m", token_ids=[1, 2], sampling=Sampling(max_tokens=1), kv=handle, generated_ids=[7]
    )
    with account.track(request):
        assert account.others("me") == Load(0, 3, 1)
        assert account.others("") == Load()
    assert account.others("me") == Load()
