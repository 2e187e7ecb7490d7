"""Workers of one stage that die: who takes over, what is lost, and that nothing of it is left anywhere else."""

import asyncio

import pytest

from support.checkpoints import picture_url
from support.deployment import deployment
from support.loops import until
from support.sse import parse
from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Span

COLOURS = ["red", "green", "blue", "teal", "gold", "plum", "navy", "pink", "gray", "lime", "cyan", "tan"]


def content(colour):
    return [{"type": "image_url", "image_url": {"url": picture_url(64, 64, colour)}}, {"type": "text", "text": colour}]


async def all_answered(answers):
    for answer in await asyncio.gather(*answers):
        assert answer.status_code == 200, answer.text


async def test_a_killed_encode_worker_fails_no_request_its_peer_takes_over():
    async with deployment(spans=["e", "e", "pd"], engine_args=("--encode-ms", "50"), fallback=False) as d:
        waiting = [asyncio.create_task(d.chat(content(colour))) for colour in COLOURS]
        await d.workers[0].busy()
        await d.workers[0].kill()
        await all_answered(waiting)


async def test_a_killed_encode_worker_fails_no_request_the_prefill_worker_stands_in():
    async with deployment(spans=["e", "pd"], engine_args=("--encode-ms", "50")) as d:
        waiting = [asyncio.create_task(d.chat(content(colour))) for colour in COLOURS]
        await d.workers[0].busy()
        await d.workers[0].kill()
        await all_answered(waiting)
        await all_answered([d.chat(content(colour)) for colour in COLOURS])


@pytest.mark.parametrize("hand_off", ["prefill-first", "rendezvous"])
async def test_a_killed_prefill_worker_is_replaced_before_the_first_token(hand_off):
    args = ("--prefill-ms", "80", "--hand-off", hand_off)
    async with deployment(spans=["p", "p", "d"], engine_args=args, fallback=False) as d:
        waiting = [asyncio.create_task(d.chat(f"number {n}")) for n in range(8)]
        await d.workers[0].busy()
        await d.workers[0].kill()
        await all_answered(waiting)


@pytest.mark.parametrize("hand_off", ["prefill-first", "rendezvous"])
async def test_a_killed_decode_worker_is_replaced_and_what_waited_for_it_freed(hand_off):
    args = ("--itl-ms", "20", "--hand-off", hand_off)
    async with deployment(spans=["p", "d", "d"], engine_args=args, fallback=False) as d:
        giver, taker, other = d.workers
        asked = [asyncio.create_task(d.chat("x", stream=True, ignore_eos=True, max_tokens=60)) for _ in range(6)]
        await taker.busy(3)
        await other.busy(3)
        await taker.made(9)
        await taker.kill()
        answers = [parse((await answer).content) for answer in asked]
        assert [answer.error for answer in answers] == [None] * 6
        assert {answer.finish_reason() for answer in answers} == {"length"}
        assert len({answer.text() for answer in answers}) == 1
        await until(lambda: giver.counts["transfer_leases"] == 0, "no KV cache waits at the prefill worker")
        await until(lambda: giver.counts["transfer_arena_used_bytes"] == 0, "and none is kept")


async def test_a_kv_cache_that_cannot_be_read_is_made_once_more():
    async with deployment(spans=["p", "p", "d"], frontend={"plan_header": True}, fallback=False) as d:
        first, second = (worker.engine.abilities.prefilling._kv for worker in d.workers[:2])
        export = first.export

        async def gone(request):
            kv = await export(request)
            first.release(kv)
            return kv

        first.export = gone
        answer = await d.chat("hello", stream=True)
        assert parse(answer.content).text() == "user\nhello\nassistant\n", "the first token is not said twice"
        assert d.workers[1].engine.stats().generated_tokens == 1, "the other one prefilled"
        second.export = gone
        failed = await d.chat("again")
        assert failed.status_code == 503
        assert failed.json()["error"]["code"] == "kv_lost"


@pytest.mark.parametrize("hand_off", ["prefill-first", "rendezvous"])
async def test_an_abandoned_prefill_leaves_nothing(hand_off):
    args = ("--itl-ms", "300", "--hand-off", hand_off)
    async with deployment(spans=["p", "d"], engine_args=args, fallback=False) as d:
        giver, taker = d.workers
        asked = asyncio.create_task(d.chat("x", ignore_eos=True, max_tokens=500))
        await taker.busy()
        asked.cancel()
        await taker.idle()
        await until(lambda: giver.counts["transfer_arena_used_bytes"] == 0, "the KV cache is freed")
        await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")


async def test_a_name_that_is_taken_is_refused():
    async with deployment(spans=["pd"]) as d:
        with pytest.raises(ConfigError, match=r"alive already.*--instance-name"):
            await d.add_worker(span=Span.PD, instance_name="pd-0")
        assert (await d.chat("hi")).status_code == 200


async def test_workers_that_disagree_on_embeddings_are_refused_at_registration():
    async with deployment(spans=["pd"]) as d:
        with pytest.raises(ConfigError, match=r"float32.*bfloat16"):
            await d.add_worker(span=Span.E, engine_args=("--embedding-dtype", "bfloat16"))
