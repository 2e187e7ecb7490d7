"""What every carrier of the event plane must do (``planes.events.base``)."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from support.carriers import NAMES, Carrier, carrier_of, quick_carrier
from support.loops import until
from support.speakers import Speaker, heard, listening
from triptych.contracts.errors import TriptychError
from triptych.contracts.kv_events import KvChange, Level, Load, packed
from triptych.contracts.request import GenerateRequest, Sampling
from triptych.planes.events import jetstream, publish, zeromq


@pytest.fixture(params=NAMES)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    return carrier_of(request)


def work(frontend_id: str, tokens: int = 20) -> GenerateRequest:
    return GenerateRequest(
        id="r", model="m", token_ids=[1], sampling=Sampling(max_tokens=1), prompt_tokens=tokens, frontend_id=frontend_id
    )


async def test_a_late_follower_knows_as_much_as_an_early_one(carrier, loop):
    async with Speaker(carrier.publisher()).speaking() as speaker:
        speaker.store(1, 2, 3)
        speaker.remove(2)
        async with listening(carrier, speaker.instance) as early:
            await early.agrees(speaker)
            speaker.store(4, 5)
            await early.agrees(speaker)
            async with listening(carrier, speaker.instance, "late") as late:
                await late.agrees(speaker)
                speaker.remove(1, 4)
                await early.agrees(speaker)
                await late.agrees(speaker)
                assert late.held == {3, 5}
                assert (early.snapshots, late.snapshots) == (1, 1)


async def test_followers_who_come_at_any_time_end_with_the_same_index(carrier):
    chance = random.Random(7)
    async with (
        Speaker(carrier.publisher()).speaking() as speaker,
        listening(carrier, speaker.instance, "first") as first,
    ):
        life = asyncio.create_task(speaker.live(chance, 300))
        async with (
            listening(carrier, speaker.instance, "second") as second,
            listening(carrier, speaker.instance, "third") as third,
        ):
            await life
            for one in (first, second, third):
                await one.agrees(speaker)
                assert len(one.held) > 100


async def test_a_slow_follower_gets_a_snapshot_in_place_of_the_waiting_updates(carrier, monkeypatch):
    for module in (zeromq, jetstream):
        monkeypatch.setattr(module, "WAITING", 4)
    async with (
        Speaker(carrier.publisher(), max_behind=4).speaking() as speaker,
        listening(carrier, speaker.instance, "slow") as slow,
    ):
        await slow.agrees(speaker)
        slow.may_read.clear()
        large = KvChange(Level.DEVICE, False, packed([7] * 4000))
        for number in range(1200):  # more than sockets hold
            speaker.log.publish([large])
            speaker.store(number)
            await asyncio.sleep(0)
        slow.may_read.set()
        await slow.agrees(speaker)
        assert slow.snapshots > 1


async def test_a_worker_that_clears_its_cache(carrier):
    async with heard(carrier) as (speaker, listener):
        speaker.store(1, 2)
        await listener.agrees(speaker)
        speaker.store(3)
        speaker.clear()
        speaker.store(4)
        await listener.agrees(speaker)
        assert listener.held == {4}


async def test_more_changes_at_once_than_fit_one_message(carrier):
    async with heard(carrier) as (speaker, listener):
        await listener.agrees(speaker)
        speaker.store(*range(publish.MESSAGE_BYTES // 4))
        await listener.agrees(speaker)
        speaker.store(-1 & (1 << 64) - 1)
        await listener.agrees(speaker)


async def test_a_worker_that_is_started_again_under_its_name(carrier):
    async with Speaker(carrier.publisher()).speaking("same") as speaker:
        speaker.store(1, 2)
        async with listening(carrier, speaker.instance) as listener:
            await listener.agrees(speaker)
    async with Speaker(carrier.publisher()).speaking("same") as speaker:
        speaker.store(3)
        async with listening(carrier, speaker.instance) as listener:
            await listener.agrees(speaker)
            speaker.store(4)
            await listener.agrees(speaker)
            assert listener.held == {3, 4}


async def test_load_is_that_of_others(carrier):
    async with (
        Speaker(carrier.publisher()).speaking() as speaker,
        listening(carrier, speaker.instance, "one") as one,
        listening(carrier, speaker.instance, "two") as two,
    ):
        account = speaker.account
        with account.track(work("one", 20)), account.track(work("two", 300)) as entry:
            await until(lambda: one.load == Load(300, 300, 1), "the first is told of the second's")
            await until(lambda: two.load == Load(20, 20, 1), "the second is told of the first's")
            entry.prefilled()
            await until(lambda: one.load == Load(0, 300, 1), "it is prefilled")
            async with listening(carrier, speaker.instance, "three") as three:
                await until(lambda: three.load == Load(20, 320, 2), "the snapshot has it")
        await until(lambda: one.load == two.load == Load(), "all is done")


async def test_a_wrong_token_hears_nothing(carrier):
    async with Speaker(carrier.publisher("right")).speaking(token="right") as speaker:
        speaker.store(1)
        async with (
            listening(carrier, speaker.instance, token="right") as good,
            listening(carrier, speaker.instance, token="wrong") as wrong,
            listening(carrier, speaker.instance) as none,
        ):
            await good.agrees(speaker)
            await until(lambda: wrong.error and none.error, "the others are refused")
            assert isinstance(wrong.error, TriptychError)
            assert wrong.held == none.held == set()


async def test_a_worker_that_is_gone_ends_what_follows_it(carrier):
    carrier.pace = replace(carrier.pace, silence_s=0.2)
    async with Speaker(carrier.publisher()).speaking() as speaker:
        listening_to = listening(carrier, speaker.instance)
        listener = await listening_to.__aenter__()
        await listener.agrees(speaker)
    try:
        await until(lambda: listener.error, "it is noticed")
        assert isinstance(listener.error, TriptychError)
    finally:
        await listening_to.__aexit__(None, None, None)


@pytest.mark.parametrize(("worker", "frontend"), [("zmq", "request"), ("request", "zmq"), ("jetstream", "zmq")])
async def test_a_worker_with_another_event_plane_is_followed_over_the_request_plane(request, worker, frontend):
    server = request.getfixturevalue("shared_nats_server") if worker == "jetstream" else None
    async with (
        Speaker(quick_carrier(worker, server).publisher()).speaking() as speaker,
        listening(quick_carrier(frontend), speaker.instance) as listener,
    ):
        speaker.store(1)
        await listener.agrees(speaker)
