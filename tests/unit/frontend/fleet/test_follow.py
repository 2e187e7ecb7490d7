"""What a frontend does about workers that it cannot hear."""

from __future__ import annotations

import asyncio
import logging

from support.instances import instance
from support.loops import until
from triptych.config.router import RouterConfig
from triptych.contracts.errors import WorkerLost
from triptych.contracts.kv_events import Load, WorkerUpdate
from triptych.frontend.fleet import follow
from triptych.frontend.fleet.follow import Follower
from triptych.router.routing import Routing


class Deaf:
    """A source that hears nothing, but for the time it ``listens``."""

    def __init__(self) -> None:
        self.asked = 0
        self.listens = False
        self.stays = False

    async def follow(self, of, frontend_id):
        self.asked += 1
        if self.listens:
            self.listens = False
            yield WorkerUpdate(None, Load())
        if self.stays:
            yield WorkerUpdate(None, Load())
            await asyncio.Event().wait()
        raise WorkerLost("gone")

    async def close(self):
        pass


async def test_the_same_trouble_is_told_once(caplog):

    def said():
        return caplog.text.count("w tells nothing for now: gone")

    with caplog.at_level(logging.INFO):
        source = Deaf()
        follower = Follower(source, Routing(RouterConfig()), retry_s=0.001, max_retry_s=0.002)
        follower.update([instance("w")])
        await until(lambda: source.asked > 10, "it is tried again and again")
        assert said() == 1
        source.listens = True
        await until(lambda: not source.listens, "something is heard")
        await until(lambda: said() == 2, "and then nothing again")
        await follower.close()


async def test_whom_it_can_hear_is_known():
    source, worker = Deaf(), instance("w")
    follower = Follower(source, Routing(RouterConfig()), retry_s=0.001, max_retry_s=0.002)
    assert follower.trouble(worker) == follow.NOT_YET
    assert follower.trouble(instance("enc", "e")) is None, "nobody listens to those"
    follower.update([worker])
    await until(lambda: follower.trouble(worker) == "gone", "it cannot be heard")
    source.stays = True
    await until(lambda: follower.trouble(worker) is None, "it is heard")
    follower.update([])
    assert follower.trouble(worker) == follow.NOT_YET
    await follower.close()


async def test_it_is_tried_less_and_less_often(monkeypatch):
    slept = []

    async def sleep(delay_s, sleep=asyncio.sleep):
        if delay_s:
            slept.append(delay_s)
        await sleep(0)

    source = Deaf()
    follower = Follower(source, Routing(RouterConfig()))
    with monkeypatch.context() as patch:
        patch.setattr(follow.asyncio, "sleep", sleep)
        follower.update([instance("w")])
        while len(slept) < 6:
            await sleep(0)
        await follower.close()
    assert slept[:6] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
