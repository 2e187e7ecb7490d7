"""Prefill in one vLLM engine, decode in another: the same answers as in one, and nothing left behind.

The last tests here stop and kill the engine that prefills.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pd_support import BLOCK, Pair, again, alone, changed, greedy, request, side_channel_port, user_message

from support import listeners
from support.loops import SOON_S
from support.reference import Reference, picture
from triptych.contracts.errors import AbilityMissing, KvLost, Unavailable
from triptych.contracts.request import Guided, KvHandle, Sampling
from triptych.contracts.spans import Span

LENGTHS = [10, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1]


@pytest.fixture(scope="module")
def pair(checkpoint: Path) -> Iterator[Pair]:
    with Pair.started(checkpoint) as both:
        yield both


def some_ids(length: int, salt: int = 0) -> list[int]:
    """A prompt of its own for each ``length`` and ``salt``."""
    return [(7 * i * i + 13 * i + 31 * length + 101 * salt) % 400 + 50 for i in range(length)]


def test_what_each_may_stand_in_for(pair: Pair) -> None:
    assert (pair.p.capable_span, pair.d.capable_span) == (Span.EP, Span.EPD)


def test_what_listens_does_so_on_loopback_and_junk_ends_neither_them_nor_the_engines(pair: Pair) -> None:
    """Before the two have met, so that the decoding engine's handshake is still to come."""
    found = listeners.tcp(os.getpid())
    assert {f"127.0.0.1:{side_channel_port(engine)}" for engine in (pair.p, pair.d)} <= found
    assert {address.rpartition(":")[0] for address in found} == {"127.0.0.1"}, "torch.distributed has some more"
    listeners.send_junk(found, listeners.datagram(os.getpid()))
    prompt = request(some_ids(100, 12), greedy(8))
    expected = pair.run(alone(pair.p, again(prompt))).tokens
    assert pair.run(pair.both(again(prompt))).tokens == expected


@pytest.mark.parametrize("length", LENGTHS)
def test_text_goes_on_after_the_first_token(pair: Pair, length: int) -> None:
    """Also where the prompt fills its last block, and the next token needs one that the prefill never had."""
    prompt = request(some_ids(length), greedy(2 * BLOCK))
    expected = pair.run(alone(pair.p, again(prompt))).tokens
    assert len(set(expected)) > 5
    for cache in ("cold", "warm"):
        assert pair.run(pair.both(again(prompt))).tokens == expected, f"prefix cache {cache}"


def test_many_at_once(pair: Pair) -> None:
    prompts = [request(some_ids(20 + 3 * n, 1), greedy(12)) for n in range(16)]

    async def all_of_them() -> None:
        expected = [(await alone(pair.d, again(prompt))).tokens for prompt in prompts]
        found = await asyncio.gather(*(pair.both(prompt) for prompt in prompts))
        assert [answer.tokens for answer in found] == expected

    pair.run(all_of_them())


PICTURES: dict[str, list[Any]] = {
    "text": ["Say something about shapes."],
    "one": [(1, 140, 112), "What is in this picture?"],
    "two": [(3, 84, 84), "and", (4, 200, 120), "Which one is larger?"],
    "same-twice": [(1, 140, 112), (1, 140, 112), "Are they equal?"],
}


@pytest.mark.parametrize("name", PICTURES)
def test_answers_equal_transformers(pair: Pair, reference: Reference, checkpoint: Path, name: str) -> None:
    """The decoding engine sees no pixels: of a picture it gets name and grid, which positions depend on."""
    contents = PICTURES[name]
    parts = [{"type": "text", "text": one} if isinstance(one, str) else {"type": "image"} for one in contents]
    pictures = [picture(*one) for one in contents if isinstance(one, tuple)]
    expected = reference.answer([{"role": "user", "content": parts}], pictures, 24)
    prompt = user_message(contents, Sampling(max_tokens=24, temperature=0), checkpoint)
    for cache in ("cold", "warm"):
        answer = pair.run(pair.both(again(prompt)))
        assert answer.tokens[: len(expected)] == expected, f"caches {cache}"
        assert answer.deltas[0].prompt_tokens > len(prompt.token_ids) or not pictures, "placeholders are expanded"
    alone_in_d = pair.run(alone(pair.d, again(prompt)))
    assert alone_in_d.tokens[: len(expected)] == expected, "it can do all by itself too"


def test_the_first_token_is_taken_as_said_and_never_drawn_again(pair: Pair) -> None:
    """Even one that the model would not have generated_ids."""
    prompt = request(some_ids(BLOCK, 2), greedy(12))

    async def continued() -> None:
        prefilled = await pair.prefill(prompt)
        odd = [prefilled.delta.token_ids[0] ^ 1]
        found = await pair.decode(prompt, prefilled, generated_ids=odd)
        expected = await alone(pair.p, request(prompt.token_ids + odd, greedy(11)))
        assert found.tokens == expected.tokens

    pair.run(continued())


def test_said_tokens_are_prefilled_with_the_prompt(pair: Pair) -> None:
    """An answer that was cut off goes on by a new prefill."""
    prompt = request(some_ids(45, 3), greedy(30))
    whole = pair.run(alone(pair.p, again(prompt)))
    for generated_ids in (1, 19, 29):
        rest = pair.run(pair.both(msgspec.structs.replace(again(prompt), generated_ids=whole.tokens[:generated_ids])))
        assert rest.tokens == whole.tokens[generated_ids:]
        assert rest.deltas[0].prompt_tokens == 45
        assert rest.deltas[-1].finish_reason == "length"
    rest = pair.run(alone(pair.d, msgspec.structs.replace(again(prompt), generated_ids=whole.tokens[:19])))
    assert rest.tokens == whole.tokens[19:], "without a prefill elsewhere too"


def test_a_seed_repeats_and_another_differs(pair: Pair) -> None:
    def draw(seed: int) -> list[int]:
        sampling = Sampling(max_tokens=24, temperature=1.2, seed=seed, ignore_eos=True)
        return pair.run(pair.both(request(some_ids(40, 4), sampling))).tokens

    first = draw(5)
    assert draw(5) == first
    assert draw(6) != first
    assert len(set(first)) > 8, "the draws of one answer differ from each other"


def test_what_is_told_of_an_answer(pair: Pair) -> None:
    """Each token's logprobs, how it ended, and the prompt's length once."""
    answer = pair.run(pair.both(request(some_ids(50, 5), greedy(6, logprobs=2))))
    assert sum(len(delta.logprobs or ()) for delta in answer.deltas) == 6
    assert all(len(one.top) == 2 for delta in answer.deltas for one in delta.logprobs or ())
    assert [delta.prompt_tokens for delta in answer.deltas] == [50] + [0] * (len(answer.deltas) - 1)
    assert [delta.finish_reason for delta in answer.deltas][-2:] == [None, "length"]
    assert answer.deltas[0].timing is not None
    assert answer.deltas[-1].timing is not None


def test_an_answer_of_one_token_holds_nothing(pair: Pair) -> None:
    ids = some_ids(50, 6)
    answer = pair.run(pair.prefill(request(ids, greedy(1))))
    assert (answer.kv, answer.delta.finish_reason, answer.delta.stop_token) == (None, "length", False)
    stop = greedy(9, stop_token_ids=(answer.delta.token_ids[0],))
    stopped = pair.run(pair.prefill(request(ids, stop)))
    assert (stopped.kv, stopped.delta.finish_reason, stopped.delta.stop_token) == (None, "stop", True)
    assert stopped.delta.token_ids == answer.delta.token_ids
    pair.run(pair.until_held(0))


HISTORY: dict[str, Sampling] = {
    "presence": greedy(24, presence_penalty=1.5),
    "frequency": greedy(24, frequency_penalty=1.0),
    "grammar": Sampling(max_tokens=24, temperature=0, guided=Guided("json_object")),
}


@pytest.mark.parametrize("name", HISTORY)
def test_draws_that_need_the_answers_history_are_all_made_in_one_engine(pair: Pair, name: str) -> None:
    prompt = request(some_ids(BLOCK * 2, 7), HISTORY[name])
    expected = pair.run(alone(pair.p, again(prompt))).tokens
    answer = pair.run(pair.both(prompt))
    assert answer.deltas[0].token_ids == []
    assert answer.deltas[0].prompt_tokens == BLOCK * 2
    assert answer.tokens == expected
    with pytest.raises(AbilityMissing):
        pair.run(alone(pair.d, msgspec.structs.replace(again(prompt), generated_ids=expected[:3])))


def test_limits_of_length_count_the_whole_answer(pair: Pair) -> None:
    ids = some_ids(41, 8)
    first = pair.run(alone(pair.p, request(ids, greedy(1)))).tokens[0]
    sampling = Sampling(max_tokens=9, min_tokens=4, temperature=0, stop_token_ids=(first,))
    expected = pair.run(alone(pair.p, request(ids, sampling)))
    found = pair.run(pair.both(request(ids, sampling)))
    assert found.tokens == expected.tokens
    assert 4 <= len(found.tokens) <= 9
    assert found.tokens[0] != first, "min_tokens forbids it as the first token"


def test_release_frees_blocks_for_others(pair: Pair) -> None:
    """Two caches fill the engine; a third prompt waits for room, and gets it as soon as one is given back."""

    async def fill() -> None:
        first, second = [await pair.prefill(request(some_ids(1400, salt), greedy())) for salt in (1, 2)]
        third = asyncio.create_task(pair.prefill(request(some_ids(1400, 3), greedy())))
        assert not (await asyncio.wait([third], timeout=0.5))[0], "the test needs a full engine"
        assert first.kv is not None
        await pair.p.abilities.prefilling.release(first.kv)
        async with asyncio.timeout(SOON_S):
            answer = await third
        await pair.p.abilities.prefilling.release(first.kv)  # a second time: nothing happens
        for one in (second, answer):
            assert one.kv is not None
            await pair.p.abilities.prefilling.release(one.kv)
        await pair.until_held(0)

    pair.run(fill())


def test_unknown_caches_may_be_released(pair: Pair) -> None:
    pair.run(
        pair.p.abilities.prefilling.release(KvHandle(protocol="vllm/NixlConnector", request_id="nobody", params=b""))
    )
    pair.run(pair.p.abilities.prefilling.release(KvHandle(protocol="mock", request_id="nobody", params=b"x")))


def test_a_cancelled_prefill_leaves_nothing(pair: Pair) -> None:
    """At whatever moment, the one between its last step and its answer included."""

    async def cancel_each_a_little_later() -> None:
        for step in range(24):
            task = asyncio.create_task(pair.prefill(request(some_ids(300, 100 + step), greedy())))
            await asyncio.sleep(0.001 * step)
            task.cancel()
            with suppress(asyncio.CancelledError):
                answer = await task
                assert answer.kv is not None
                await pair.p.abilities.prefilling.release(answer.kv)
        await pair.until_held(0)
        assert pair.p.stats().running == 0

    pair.run(cancel_each_a_little_later())


def test_a_cancelled_decode_frees_the_cache_at_its_owner(pair: Pair) -> None:
    async def cancel_each_a_little_later() -> None:
        for step in range(8):
            prompt = request(some_ids(300, 200 + step), greedy(200))
            prefilled = await pair.prefill(prompt)
            task = asyncio.create_task(pair.decode(prompt, prefilled))
            await asyncio.sleep(0.002 * step)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            # One cancelled before vLLM knew of it tells nobody: then whoever owns the request releases.
            if step == 0 and prefilled.kv is not None:
                await pair.p.abilities.prefilling.release(prefilled.kv)
            await pair.until_held(0)
        assert pair.d.stats().running == 0

    pair.run(cancel_each_a_little_later())


def test_caches_are_cleared_while_nothing_runs_and_answers_stay_the_same(pair: Pair, checkpoint: Path) -> None:
    caches, log = pair.p.abilities.cache_control, pair.p.abilities.kv_reports
    prompt = user_message(PICTURES["one"], greedy(12), checkpoint)

    async def cached() -> tuple[list[int], int]:
        answer = await alone(pair.p, again(prompt))
        return answer.tokens, answer.deltas[0].cached_tokens

    async def until_reported(some: bool) -> None:
        async with asyncio.timeout(SOON_S):
            while bool(log.snapshot()) is not some:
                await asyncio.sleep(0.01)

    async def clear() -> None:
        tokens, _ = await cached()
        assert await cached() == (tokens, pytest.approx(len(prompt.token_ids), abs=2 * BLOCK))
        await until_reported(some=True)
        for names in (["prefix"], ["prefix", "media"], ["prefix"]):
            await caches.clear(names, 0)
            await until_reported(some=False)
            assert await cached() == (tokens, 0), f"after {names}"
            assert (await cached())[1] > 0

    assert caches.caches == ("prefix", "media")
    pair.run(clear())


def test_no_cache_is_cleared_under_a_request_or_a_kv_cache_that_waits_for_its_reader(pair: Pair) -> None:
    caches = pair.p.abilities.cache_control

    async def refused() -> None:
        prompt = request(some_ids(300, 77), greedy(2000))
        running = asyncio.create_task(alone(pair.p, prompt))
        while not pair.p.stats().running:
            await asyncio.sleep(0.001)
        for names in (["prefix"], ["media"]):
            with pytest.raises(Unavailable) as raised:
                await caches.clear(names, 0)
            assert raised.value.code == "requests_running"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        kept = await pair.prefill(request(some_ids(300, 78), greedy()))
        with pytest.raises(Unavailable) as raised:
            await caches.clear(["prefix", "media"], 5)
        assert raised.value.code == "caches_in_use"
        await pair.p.abilities.prefilling.release(kept.kv)
        await pair.until_held(0)
        await caches.clear(["prefix", "media"], 5)

    pair.run(refused())


def test_out_of_room_while_decoding_loses_no_text_and_no_engine(pair: Pair, checkpoint: Path) -> None:
    """Answers outgrow the decoding engine: it drops one and computes it again, which it can of text alone."""
    texts = [request(some_ids(300, 300 + n), greedy(900)) for n in range(2)]
    media = [user_message([(20 + n, 140, 112), "Describe it."], greedy(900), checkpoint) for n in range(2)]

    async def overfill() -> list[Any]:
        return await asyncio.gather(*map(pair.both, [*texts, *media]), return_exceptions=True)

    found = pair.run(overfill())
    assert [type(one).__name__ for one in found[:2]] == ["Answer", "Answer"]
    assert all(isinstance(one, KvLost) or len(one.tokens) == 900 for one in found[2:]), found[2:]
    assert pair.run(alone(pair.d, request(some_ids(20), greedy(3)))).tokens


def lost(pair: Pair, prompt: Any, prefilled: Any, kv: KvHandle) -> float:
    """Seconds until the decoding engine says that ``kv`` cannot be read."""
    begun = time.perf_counter()
    with pytest.raises(KvLost):
        pair.run(pair.decode(prompt, prefilled, kv=kv))
    return time.perf_counter() - begun


def test_a_cache_that_is_not_there_is_lost_soon_and_harms_nothing(pair: Pair) -> None:
    prompt = request(some_ids(100, 9), greedy())
    prefilled = pair.run(pair.prefill(prompt))
    assert prefilled.kv is not None
    assert lost(pair, prompt, prefilled, changed(prefilled.kv, remote_engine_id="e1", remote_port=1)) < 3
    assert lost(pair, prompt, prefilled, changed(prefilled.kv, remote_engine_id="restarted since")) < 3
    old = msgspec.msgpack.encode({**msgspec.msgpack.decode(prefilled.kv.params), "expires_unix_s": time.time()})
    assert lost(pair, prompt, prefilled, msgspec.structs.replace(prefilled.kv, params=old)) < 1
    assert pair.run(pair.held()) == 1
    expected = pair.run(alone(pair.p, again(prompt))).tokens
    rest = pair.run(pair.decode(again(prompt), prefilled))
    assert prefilled.delta.token_ids + rest.tokens == expected, "the cache itself can still be read"
    pair.run(pair.until_held(0))


def test_an_owner_that_hangs_is_not_needed_and_one_that_dies_is_noticed(pair: Pair) -> None:
    """On one host the kernel reads the owner's memory."""
    prompts = [request(some_ids(100, 10 + n), greedy()) for n in range(2)]
    caches = [pair.run(pair.prefill(prompt)) for prompt in prompts]
    expected = pair.run(alone(pair.p, again(prompts[0]))).tokens
    pid = pair.pids[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        rest = pair.run(pair.decode(prompts[0], caches[0]))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert caches[0].delta.token_ids + rest.tokens == expected
    os.kill(pid, signal.SIGKILL)
    assert lost(pair, prompts[1], caches[1], caches[1].kv) < 10
    assert "died" in pair.run(pair.p.failed())
    assert pair.run(alone(pair.d, again(prompts[0]))).tokens == expected, "the decoding engine goes on by itself"
