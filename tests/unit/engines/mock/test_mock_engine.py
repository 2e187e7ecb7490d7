"""The mock engine keeps the engine port's promises, and its own."""

import asyncio

import pytest
from msgspec.structs import replace

from support.checkpoints import IMAGE_ID, cells, picture
from support.loops import until
from triptych.config.media import MediaLimits
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import BadRequest, ConfigError, KvLost
from triptych.contracts.media import Picture
from triptych.contracts.request import GenerateRequest, KvHandle, Sampling
from triptych.contracts.spans import Span
from triptych.demo import MODEL_DIR
from triptych.engines.base import EngineOptions
from triptych.engines.mock.engine import MockEngine
from triptych.engines.registry import engine_factory
from triptych.transfer.inproc import InprocTransfer


def options(*args, span=Span.EPD):
    return EngineOptions(model_path=str(MODEL_DIR), model_name="m", span=span, media=MediaLimits(), args=args)


def request(ids=(5, 6, 7), media=(), **sampling):
    fields = {"max_tokens": 100, "temperature": 0.0, **sampling}
    return GenerateRequest(id="r", model="m", token_ids=list(ids), sampling=Sampling(**fields), media=list(media))


def medium(data):
    return Picture(content_hash="h", format="PNG", data=data, width=1, height=1)


async def generate(*requests, args=()):
    """All deltas of each request, and the engine's stats at the end."""
    engine = MockEngine(options(*args))
    await engine.start(InprocTransfer(TransferConfig()))
    try:
        answers = [[delta async for delta in engine.abilities.generating.generate(one)] for one in requests]
        return answers, engine.stats()
    finally:
        await engine.stop()
        await engine.stop()


def tokens(deltas):
    return [token for delta in deltas for token in delta.token_ids]


async def test_it_says_the_prompt_again():
    [[*deltas]], stats = await generate(request())
    assert tokens(deltas) == [5, 6, 7]
    assert [delta.finish_reason for delta in deltas] == [None, None, "stop"]
    assert [delta.prompt_tokens for delta in deltas] == [3, 0, 0]
    assert [delta.timing is not None for delta in deltas] == [False, False, True]
    assert (stats.running, stats.generated_tokens) == (0, 3)


@pytest.mark.parametrize(
    ("sampling", "count", "reason"),
    [
        ({"max_tokens": 2}, 2, "length"),
        ({"max_tokens": 3}, 3, "length"),
        ({"max_tokens": 9, "ignore_eos": True}, 9, "length"),
        ({"max_tokens": 9, "min_tokens": 5}, 5, "stop"),
    ],
)
async def test_lengths(sampling, count, reason):
    [deltas], _ = await generate(request(**sampling))
    assert len(tokens(deltas)) == count
    assert deltas[-1].finish_reason == reason


async def test_seeds():
    ids = range(20, 60)
    one, same, other = (await generate(*(request(ids, temperature=1.0, seed=seed) for seed in (1, 1, 2))))[0]
    assert tokens(one) == tokens(same) != tokens(other)
    assert sorted(tokens(other)) == list(ids)


async def test_logprobs():
    [deltas], _ = await generate(request(logprobs=2))
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
    assert all(len(entry.top) == 2 for delta in deltas for entry in delta.logprobs)


async def test_pictures_are_decoded_and_counted_and_not_said():
    [deltas], _ = await generate(request([5, IMAGE_ID, 6], [medium(picture(112, 112))]))
    assert tokens(deltas) == [5, 6]
    assert deltas[0].prompt_tokens == 2 + cells(112, 112)


async def test_a_damaged_picture_is_refused_and_leaves_nothing():
    engine = MockEngine(options())
    await engine.start(InprocTransfer(TransferConfig()))
    with pytest.raises(BadRequest, match="damaged"):
        await anext(engine.abilities.generating.generate(request([IMAGE_ID], [medium(picture(64, 64)[:-30])])))
    assert engine.stats().running == 0
    await engine.stop()


async def test_closing_the_iterator_aborts():
    engine = MockEngine(options("--itl-ms", "1000"))
    await engine.start(InprocTransfer(TransferConfig()))
    stream = engine.abilities.generating.generate(request())
    await anext(stream)
    assert engine.stats().running == 1
    await stream.aclose()
    assert engine.stats().running == 0
    await engine.stop()


async def test_a_kv_cache_that_is_handed_over_is_kept_until_it_is_read_or_given_back_or_its_lease_ends():
    """And nothing of it stays in the engine, however many there were."""
    transfer = InprocTransfer(TransferConfig(lease_s=0.05))
    await transfer.start()
    engine = MockEngine(options())
    await engine.start(transfer)
    given = [await engine.abilities.prefilling.prefill(replace(request(), id=f"r{n}"), []) for n in range(50)]
    assert transfer.stats().leases == 50
    held = _held_by(engine)
    async for _ in engine.abilities.generating.generate(
        replace(request(), kv=given[0].kv, generated_ids=given[0].delta.token_ids)
    ):
        pass
    await engine.abilities.prefilling.release(given[1].kv)
    await engine.abilities.prefilling.release(given[1].kv)
    await engine.abilities.prefilling.release(KvHandle(protocol="vllm/NixlConnector", request_id="r2", params=b"x"))
    assert transfer.stats().leases == 48
    await until(lambda: transfer.stats().leases == 0, "the leases of the others end")
    assert transfer.stats().used_bytes == 0
    late = replace(request(), kv=given[2].kv, generated_ids=given[2].delta.token_ids)
    with pytest.raises(KvLost):
        await anext(engine.abilities.generating.generate(late))
    for number in range(50):
        await engine.abilities.prefilling.prefill(replace(request(), id=f"s{number}"), [])
    assert _held_by(engine) == held, "it keeps an account of none of them"
    await engine.stop()
    await transfer.close()


def _held_by(part):
    """The size of each collection of the engine and of its parts."""
    held = {}
    for name, value in getattr(part, "__dict__", {}).items():
        if isinstance(value, dict | list | set):
            held[name] = len(value)
        elif type(value).__module__.startswith("triptych.engines.mock"):
            held[name] = _held_by(value)
    return held


@pytest.mark.event_loop(kind="virtual")
async def test_a_prefill_and_each_later_token_take_the_time_that_flags_say():
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await generate(request(), args=("--prefill-ms", "6000", "--itl-ms", "4000"))
    assert loop.time() - begun == pytest.approx(14.0, abs=1.0), "three tokens, two waits between them"


async def test_it_does_not_fail_by_itself():
    engine = MockEngine(options())
    await engine.start(InprocTransfer(TransferConfig()))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await engine.failed()
    await engine.stop()


def test_unknown_engines_list_the_known():
    with pytest.raises(ConfigError, match="unknown engine 'tgi'; known: encoder, mock, vllm"):
        engine_factory("tgi")
    assert engine_factory("mock") is MockEngine
