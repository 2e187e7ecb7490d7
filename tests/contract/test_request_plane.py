"""What every back end of the request plane must do (``planes.request.base``)."""

from __future__ import annotations

import asyncio
import time

import pytest

from support.loops import SOON_S, until
from triptych.contracts.errors import (
    BadRequest,
    DeadlineExceeded,
    NotFound,
    TooManyRequests,
    TriptychError,
    Unavailable,
    WorkerLost,
    WorkerSilent,
    WorkerStopped,
    WorkerUnreached,
)
from triptych.planes.request.base import Peer
from triptych.planes.request.limits import WireLimits


async def count(payload):
    """As many items as the payload says."""
    for number in range(int(payload)):
        yield b"%d" % number


async def echo(payload):
    yield payload


async def silent(payload):
    await asyncio.Event().wait()
    yield b""


class Watched:
    """A handler that tells what became of it: an item now and then until it is closed."""

    def __init__(self, first=1):
        self.first = first
        self.made = 0
        self.started = self.closed = 0

    async def __call__(self, payload):
        self.started += 1
        try:
            for _ in range(self.first):
                self.made += 1
                yield b"item"
            await asyncio.Event().wait()
        finally:
            self.closed += 1

    async def ended(self, times=1):
        await until(lambda: self.closed == times, "the handler's generator is closed", SOON_S)


async def test_an_answer_in_order(plane, loop):
    async with plane.line(count) as line:
        assert await line.all(b"1000") == [b"%d" % number for number in range(1000)]
        assert await line.all(b"0") == [], "an answer may be empty"


async def test_many_answers_at_the_same_time_keep_apart(plane, loop):
    async def slow_count(payload):
        for number in range(60):
            if number % 7 == 0:
                await asyncio.sleep(0)
            yield payload + b":%d" % number

    async with plane.line(slow_count) as line:
        answers = await asyncio.gather(*(line.all(b"%d" % stream) for stream in range(80)))
        for stream, items in enumerate(answers):
            assert items == [b"%d:%d" % (stream, number) for number in range(60)]


@pytest.mark.parametrize("size", [0, 1, 65_536, 30_000_000])
async def test_payloads_of_every_size_both_ways(plane, loop, size):
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with plane.line(echo) as line:
        assert await line.all(payload) == [payload]


async def test_items_that_wait_together_come_as_one_batch(plane):
    async with plane.line(count) as line, line.call(b"100") as call:
        batches = [batch async for batch in call]
        assert all(batches), "no batch is empty"
        assert sum(map(len, batches)) == 100
        assert len(batches) < 50, "tokens that wait together are handed over together"


async def test_a_slow_reader_bounds_the_sender(plane, loop):
    handler = Watched(first=100_000)
    async with plane.line(handler) as line, line.call() as call:
        got = len(await anext(call))
        await _settled(lambda: handler.made)
        assert handler.made < got + 1000, "the sender runs ahead by a window, not by everything"
        before = handler.made
        while got < before + 1:
            got += len(await anext(call))
        await until(lambda: handler.made > before, "reading makes room for more")
    await handler.ended()


async def _settled(value):
    """Wait until ``value()`` has not moved for a while."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 0.1:
        await asyncio.sleep(0.01)
        if value() != last:
            last, since = value(), time.monotonic()


async def test_a_reader_that_does_not_read_holds_up_nobody_else(plane):
    async with plane.line(count) as line, line.call(b"100000") as stuck:
        await anext(stuck)
        assert len(await line.all(b"5000")) == 5000


@pytest.mark.parametrize("first", [0, 1, 50])
async def test_leaving_the_block_closes_the_handler(plane, loop, first):
    handler = Watched(first)
    async with plane.line(handler) as line:
        async with line.call() as call:
            if first:
                await anext(call)
            else:
                await until(lambda: handler.started, "the call arrived")
        await handler.ended()


async def test_cancelling_the_caller_closes_the_handler(plane, loop):
    handler = Watched(0)
    async with plane.line(handler) as line:
        task = asyncio.create_task(line.all())
        await until(lambda: handler.started, "the call arrived")
        task.cancel()
        await handler.ended()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancelling_one_call_touches_no_other(plane):
    async def handler(payload):
        yield b"first"
        await go.wait()
        yield b"second"

    go = asyncio.Event()
    async with plane.line(handler) as line, line.call() as kept:
        async with line.call() as left:
            assert await anext(left) == [b"first"]
            assert await anext(kept) == [b"first"]
        go.set()
        assert await anext(kept) == [b"second"]


async def test_a_cancel_while_the_sender_waits_for_room(plane):
    handler = Watched(first=100_000)
    async with plane.line(handler) as line:
        async with line.call() as call:
            await anext(call)
            await _settled(lambda: handler.made)
        await handler.ended()


async def test_errors_cross_whole(plane, loop):
    async def refuse(payload):
        yield b"one"
        yield b"two"
        raise TooManyRequests("full", param="n", code="too_full", retry_after_s=3.5)

    async with plane.line(refuse) as line, line.call() as call:
        got = []
        with pytest.raises(TooManyRequests, match="full") as caught:  # noqa: PT012
            async for batch in call:
                got.extend(batch)
        assert got == [b"one", b"two"], "what came before the error is not lost"
        error = caught.value
        assert (error.status, error.param, error.code, error.retry_after_s) == (429, "n", "too_full", 3.5)


async def test_an_error_before_the_first_item(plane):
    async def refuse(payload):
        raise BadRequest("no", param="temperature")
        yield b""

    async with plane.line(refuse) as line:
        with pytest.raises(BadRequest, match="no"):
            await line.all()
        with pytest.raises(BadRequest, match="no"):
            await line.all()


async def test_a_fault_of_the_handler_is_a_500_without_its_inside(plane):
    async def broken(payload):
        yield b"one"
        raise RuntimeError("secret")

    async with plane.line(broken) as line:
        with pytest.raises(TriptychError) as caught:
            await line.all()
        assert caught.value.status == 500
        assert "secret" not in caught.value.message


async def test_an_unknown_endpoint(plane):
    async with plane.line(echo) as line:
        with pytest.raises(NotFound, match="nothing"):
            await line.all(endpoint="nothing")
        assert await line.all(b"x") == [b"x"]


async def test_too_many_calls_at_once(plane):
    handler = Watched(1)
    async with plane.line(handler, max_in_flight=3) as line:
        calls = [line.call() for _ in range(3)]
        for call in calls:
            await call.__aenter__()
            await anext(call)
        with pytest.raises(TooManyRequests) as caught:
            await line.all()
        assert caught.value.retry_after_s
        await calls[0].__aexit__(None, None, None)
        await handler.ended(1)
        async with line.call() as call:
            assert await anext(call) == [b"item"], "an ended call makes room"
        for call in calls[1:]:
            await call.__aexit__(None, None, None)


async def test_a_lost_connection_ends_every_call_on_it(plane, loop):
    handler = Watched(3)
    async with plane.line(handler) as line:
        answers = [[] for _ in range(10)]

        async def one(got):
            with pytest.raises(WorkerLost):  # noqa: PT012
                async with line.call() as call:
                    async for batch in call:
                        got.extend(batch)
            return got

        tasks = [asyncio.create_task(one(got)) for got in answers]
        await until(lambda: sum(map(len, answers)) == 30, "all are under way")
        plane.cut(line)
        assert await asyncio.gather(*tasks) == [[b"item"] * 3] * 10
        await handler.ended(10)
        async with line.call() as call:
            assert await anext(call), "the next call connects anew"


async def test_nobody_there(plane, loop):
    async with plane.line(echo) as line:
        await line.all(b"x")
        await line.server.close()
        for _ in range(2):
            with pytest.raises(WorkerLost):
                await line.all(b"x")


async def test_silence_is_given_up_and_the_handler_told(plane):
    loop = asyncio.get_running_loop()
    handler = Watched(1)
    async with plane.line(handler) as line:
        begun = loop.time()
        with pytest.raises(DeadlineExceeded, match=r"0\.2 s"):
            await line.all(silence_s=0.2)
        assert loop.time() - begun > 0.15
        await handler.ended()


@pytest.mark.event_loop(kind="virtual")
async def test_a_slow_answer_is_not_silence(plane):
    async def slow(payload):
        for _ in range(3):
            await asyncio.sleep(8)
            yield b"x"

    async with plane.line(slow) as line:
        assert len(await line.all(silence_s=12)) == 3, "24 s in all, but never 12 s of silence"


@pytest.mark.event_loop(kind="virtual")
async def test_a_slow_reader_is_not_silence(plane):
    async with plane.line(count) as line, line.call(b"2000", silence_s=5) as call:
        got = len(await anext(call))
        await asyncio.sleep(15)
        async for batch in call:
            got += len(batch)
        assert got == 2000


async def test_drain_refuses_new_calls_and_waits_for_old_ones(plane, loop):
    go = asyncio.Event()

    async def handler(payload):
        yield b"first"
        await go.wait()
        yield b"last"

    async with plane.line(handler) as line, line.call() as call:
        assert await anext(call) == [b"first"]
        draining = asyncio.create_task(line.server.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as caught:
            await line.all()
        assert caught.value.code == "worker_draining"
        assert not draining.done(), "a call is still in flight"
        go.set()
        assert await anext(call) == [b"last"]
        with pytest.raises(StopAsyncIteration):
            await anext(call)
        await asyncio.wait_for(draining, SOON_S)


async def test_drain_ends_at_its_deadline(plane):
    handler = Watched(1)
    async with plane.line(handler) as line, line.call() as call:
        await anext(call)
        begun = time.monotonic()
        await line.server.drain(0.2)
        assert 0.15 < time.monotonic() - begun < 5
        await line.server.close()
        assert handler.closed == 1, "closing cancels what is left"
        with pytest.raises(WorkerLost):
            await anext(call)


@pytest.mark.parametrize("size", [1, 5_000_000])
async def test_an_answer_sent_before_the_server_closes_arrives(plane, loop, size):
    arrived = asyncio.Event()

    async def handler(payload):
        arrived.set()
        yield bytes(size)

    async with plane.line(handler) as line:
        waiting = asyncio.create_task(line.all())
        await arrived.wait()
        await line.server.drain(10)
        await line.server.close()
        assert await waiting == [bytes(size)]


async def test_closing_twice_and_closing_with_calls_in_flight(plane, loop):
    handler = Watched(1)
    async with plane.line(handler) as line:
        async with line.call() as call:
            await anext(call)
            await line.client.close()
            with pytest.raises(WorkerLost):
                await anext(call)
        await line.client.close()
        await handler.ended()
        await line.server.close()
        await line.server.close()


@pytest.mark.parametrize("given", [None, "wrong", "shared-and-more", ""])
async def test_a_wrong_token_gets_nothing(plane, given):
    handler = Watched(1)
    async with plane.line(handler, token="shared", client_token=given) as line:
        with pytest.raises(WorkerLost):
            await line.all(b"payload")
        assert handler.started == 0, "no payload of a stranger is looked at"


async def test_the_right_token_is_let_in(plane):
    async with plane.line(echo, token="shared", client_token="shared") as line:
        assert await line.all(b"payload") == [b"payload"]


async def test_a_worker_on_the_port_of_another_takes_none_of_its_calls(plane):
    """It was killed, say, and another one listens at its port before discovery knows."""
    async with plane.line(echo, id="new.2") as line:
        with pytest.raises(WorkerLost):
            await line.all(b"x", to="old.1")
        assert await line.all(b"x", to="new.2") == [b"x"]
        assert await line.all(b"x") == [b"x"], "whoever it is"


async def test_a_call_is_sent_only_when_its_block_is_entered(plane):
    handler = Watched(1)
    async with plane.line(handler) as line:
        line.call()
        async with line.call() as call:
            await anext(call)
        assert handler.started == 1


def lost_peers(line):
    """Peers that the client says it has lost, as they come."""
    told = []
    line.client.on_lost(told.append)
    return told


async def test_a_call_that_ends_its_server_at_once_was_taken(plane, loop):
    """The word that it is taken leaves before anything of it is done."""

    async def fatal(payload):
        plane.cut(line)
        yield b""

    async with plane.line(fatal, id="w.1") as line:
        lost = lost_peers(line)
        with pytest.raises(WorkerLost) as told:
            await line.all(to="w.1")
        assert type(told.value) is WorkerLost
        assert [peer.id for peer in lost] == ["w.1"]


async def test_a_call_that_no_worker_took_is_unreached(plane, loop):
    async with plane.line(echo) as line:
        lost = lost_peers(line)
        await line.server.close()
        with pytest.raises(WorkerUnreached):
            await line.all()
        with pytest.raises(WorkerUnreached):
            await line.all(to="another")
        assert lost == [], "a peer that never spoke is not lost"


async def test_a_call_that_a_frozen_peer_has_not_read_is_not_taken(plane, loop):
    plane.limits = WireLimits(keepalive_s=0.05, silence_s=0.25)
    handler = Watched(1)
    async with plane.line(handler, id="w.1") as line, line.call(to="w.1") as taken:
        lost = lost_peers(line)
        assert await anext(taken) == [b"item"]
        for one in line.server.connections:
            one._transport.pause_reading()
            one.send = lambda *frame: None
        with pytest.raises(WorkerUnreached):
            await line.all(to="w.1")
        with pytest.raises(WorkerLost) as told:
            await anext(taken)
        assert type(told.value) is WorkerLost
        assert [peer.id for peer in lost] == ["w.1"]
        plane.cut(line)


async def test_a_peer_dropped_while_it_answers_no_ping_counts_as_lost(plane):
    """Discovery drops a worker that hangs a little before its connection is given up; one that drains is not lost."""
    plane.limits = WireLimits(keepalive_s=0.05)
    async with plane.line(echo, id="w.1") as line:
        lost, peer = lost_peers(line), Peer(line.host, line.port, "w.1")
        await line.all(to="w.1")
        line.client.forget(peer)
        await until(lambda: not line.client.opened, "its connection is closed")
        assert lost == []
        await line.all(to="w.1")
        for one in line.server.connections:
            one.send = lambda *frame: None
        await until(lambda: line.client.is_silent(peer), "it answers no ping")
        line.client.forget(peer)
        assert lost == [peer]


async def test_a_server_that_drains_says_so_and_is_not_lost(plane, loop):
    handler = Watched(1)
    async with plane.line(handler, id="w.1") as line, line.call(to="w.1") as call:
        lost = lost_peers(line)
        await anext(call)
        await line.server.drain(0.05)
        with pytest.raises(WorkerStopped):
            await anext(call)
        await line.server.close()
        await until(lambda: not line.client.opened, "its connection is closed")
        assert lost == []


async def test_a_worker_that_announced_its_leave_is_not_lost_when_its_connection_breaks(plane):
    handler = Watched(1)
    async with plane.line(handler, id="w.1") as line, line.call(to="w.1") as call:
        lost = lost_peers(line)
        await anext(call)
        draining = asyncio.create_task(line.server.drain(20))
        (connection_there,) = line.client.opened
        await until(lambda: connection_there._leaving, "it has said so")
        plane.cut(line)
        with pytest.raises(WorkerStopped):
            await anext(call)
        await draining
        assert lost == []


@pytest.mark.parametrize("speaks", [True, False])
async def test_a_worker_silent_on_one_call_may_answer_others(plane, speaks):
    async def mixed(payload):
        if payload == b"silent":
            await asyncio.Event().wait()
        yield payload

    async with plane.line(mixed) as line:
        assert await line.all(b"before") == [b"before"]
        waiting = asyncio.create_task(line.all(b"silent", silence_s=0.3))
        await until(lambda: len(line.server.tasks) == 1, "it is there")
        await asyncio.sleep(0.05)
        if speaks:
            assert await line.all(b"now") == [b"now"]
        with pytest.raises(WorkerSilent) as told:
            await waiting
        assert told.value.speaks is speaks
