"""What a publisher says, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from support.loops import until
from triptych.contracts.kv_events import SNAPSHOT, KvChange, Load, NumberedUpdate, Snapshot, packed
from triptych.contracts.request import GenerateRequest, Sampling
from triptych.kv.log import KvLog
from triptych.planes.events import publish
from triptych.planes.events.base import USUAL, EventPace
from triptych.planes.events.load_tracker import LoadTracker
from triptych.planes.events.publish import PubSubPublisher


class Sent:
    """An sender that keeps all messages."""

    def __init__(self) -> None:
        self.messages: list[NumberedUpdate] = []
        self.on_subscriber: Callable[[], None] = lambda: None
        self.closed = False

    async def open(self, birth: str, on_subscriber: Callable[[], None]) -> str:
        self.on_subscriber = on_subscriber
        return "nowhere:1"

    def send(self, message: bytes) -> None:
        self.messages.append(msgspec.msgpack.decode(message, type=NumberedUpdate))

    async def close(self) -> None:
        self.closed = True


def change(*hashes: int) -> KvChange:
    return KvChange(0, True, packed(list(hashes)))


@asynccontextmanager
async def publishing(pace: EventPace = USUAL) -> Any:
    sent = Sent()
    publisher, log, account = PubSubPublisher(sent, pace), KvLog(lambda: [change(99)]), LoadTracker()
    assert await publisher.start(log, account) == "nowhere:1"
    try:
        yield publisher, sent.messages, log, account, sent
    finally:
        await publisher.close()
        log.publish([change(1)])
        assert sent.closed


async def snapshot(publisher: PubSubPublisher) -> Snapshot:
    [answer] = [one async for one in publisher.endpoints()[SNAPSHOT](b"")]
    return msgspec.msgpack.decode(answer, type=Snapshot)


async def test_changes_of_one_turn_make_one_message_and_messages_are_numbered() -> None:
    async with publishing() as (publisher, messages, log, _, _):
        log.publish([change(1)])
        log.publish([change(2), change(3)])
        await asyncio.sleep(0)
        log.publish([change(4)])
        await asyncio.sleep(0)
        assert messages == [
            NumberedUpdate(publisher.birth, 1, [change(1), change(2), change(3)]),
            NumberedUpdate(publisher.birth, 2, [change(4)]),
        ]


async def test_a_snapshot_has_what_was_said_and_nothing_in_it_is_said_again() -> None:
    async with publishing() as (publisher, messages, log, _, _):
        log.publish([change(1)])
        log.publish([change(2)])
        found = await snapshot(publisher)
        assert (found.birth, found.number, found.changes) == (publisher.birth, 1, [change(99)])
        assert [one.number for one in messages] == [1], "what waited was said before"
        await asyncio.sleep(0)
        log.publish([change(3)])
        await asyncio.sleep(0)
        assert [(one.number, one.changes) for one in messages[1:]] == [(2, [change(3)])]


async def test_what_cannot_be_said_is_missing_in_the_numbers() -> None:
    async with publishing() as (_, messages, log, _, _):
        log.publish([change(*range(publish.MESSAGE_BYTES // 8))])
        await asyncio.sleep(0)
        log.publish([change(1)])
        log.reset()
        await asyncio.sleep(0)
        assert [(one.number, one.changes) for one in messages] == [(2, []), (4, [])]


async def test_loads_are_said_when_they_change_and_something_is_said_always() -> None:
    pace = EventPace(load_period_s=0.01, heartbeat_s=0.05)
    request = GenerateRequest(
        id="r", model="m", token_ids=[1], sampling=Sampling(max_tokens=1), prompt_tokens=20, frontend_id="you"
    )
    async with publishing(pace) as (publisher, messages, _, account, sent):
        with account.track(request):
            await until(lambda: messages, "it is said")
            assert messages == [NumberedUpdate(publisher.birth, 1, [], {"you": Load(20, 20, 1)})]
            assert (await snapshot(publisher)).loads == {"you": Load(20, 20, 1)}
        await until(lambda: len(messages) > 2, "it is over, and then nothing happens")
        assert [one.loads for one in messages[1:]] == [{}, {}]
        before = len(messages)
        sent.on_subscriber()
        sent.on_subscriber()
        await asyncio.sleep(0)
        assert len(messages) == before + 1, "those who begin to listen are greeted together"
