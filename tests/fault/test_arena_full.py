"""An encode worker whose arena is full: who waits, who is refused and how, and that all is freed after."""

import asyncio
from contextlib import asynccontextmanager

from support.checkpoints import cells, image_part, picture_url
from support.deployment import deployment
from support.loops import until, until_async
from support.transfers import HeldBack
from triptych.config.transfer import TransferConfig
from triptych.contracts.spans import Span
from triptych.engines.mock.tensors import EMBEDDING_WIDTH
from triptych.transfer.inproc import InprocTransfer

SIDE = 224
EMBEDDING_BYTES = cells(SIDE, SIDE) * EMBEDDING_WIDTH * 4
ARENA_BYTES = 4096
FILLING = ["red", "green", "blue", "teal", "gold", "plum", "navy", "pink"]
QUEUE = 2


@asynccontextmanager
async def full_arena(wait_s):
    """(deployment, encode worker, transfer that would make room, the request that fills the arena)."""
    assert len(FILLING) * EMBEDDING_BYTES == ARENA_BYTES
    config = TransferConfig(arena_bytes=ARENA_BYTES, arena_wait_s=wait_s, arena_queue=QUEUE)
    taker = HeldBack()
    async with deployment(spans=["pd"], fallback=False, transfer=taker) as d:
        encoder = await d.add_worker(span=Span.E, instance_name="enc", transfer=InprocTransfer(config))
        await until_async(lambda: _both_known(d), "the frontend knows both workers")
        filling = asyncio.create_task(ask(d, *FILLING))
        await until(lambda: encoder.counts["transfer_leases"] == len(FILLING), "the arena is full")
        yield d, encoder, taker, filling


async def _both_known(d):
    return len((await d.http.get("/health")).json()["models"]["demo"]["instances"]) == 2


async def ask(d, *colours):
    parts = [image_part(picture_url(SIDE, SIDE, colour)) for colour in colours]
    return await d.chat([*parts, {"type": "text", "text": "what is it?"}])


async def everything_is_free(d):
    await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")
    for one in d.workers:
        await until(lambda one=one: one.counts["transfer_leases"] == 0, "no lease is left")
        one.worker.cache.store.clear()
        await until(lambda one=one: one.counts["transfer_arena_used_bytes"] == 0, "only caches held memory")
        assert one.counts["transfer_waiting"] == 0
        assert one.running == 0


async def test_requests_wait_in_a_bounded_line_and_are_answered_when_room_comes():
    async with full_arena(wait_s=30) as (d, encoder, taker, filling):
        waiting = [asyncio.create_task(ask(d, colour)) for colour in ("lime", "cyan")]
        await until(lambda: encoder.counts["transfer_waiting"] == QUEUE, "both wait for room")
        refused(await ask(d, "tan"), f"{QUEUE} callers already wait")
        assert (await d.chat("a text needs no room")).status_code == 200
        taker.go.set()
        for answer in await asyncio.gather(filling, *waiting):
            assert answer.status_code == 200, answer.text
        await everything_is_free(d)


async def test_waiting_too_long_for_room_gives_503_and_leaves_nothing_behind():
    async with full_arena(wait_s=0.3) as (d, encoder, taker, filling):
        for answer in await asyncio.gather(*(ask(d, colour) for colour in ("lime", "cyan"))):
            refused(answer, "no room for tensors came free within 0.3 s")
        assert not filling.done()
        assert encoder.counts["transfer_leases"] == len(FILLING), "what waits to be fetched is not touched"
        taker.go.set()
        for answer in (await filling, await ask(d, "lime"), await ask(d, *FILLING)):
            assert answer.status_code == 200, answer.text
        await everything_is_free(d)


def refused(answer, message):
    assert answer.status_code == 503, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert (error["type"], error["code"]) == ("service_unavailable", "arena_full")
    assert int(answer.headers["retry-after"]) >= 1
