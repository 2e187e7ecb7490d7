"""The mock engine at the pace of a modelled one."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from support.checkpoints import IMAGE_ID, picture
from triptych.config.media import MediaLimits
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import BadRequest, ConfigError
from triptych.contracts.kv_events import unpacked
from triptych.contracts.media import Picture
from triptych.contracts.request import GenerateRequest, Sampling
from triptych.contracts.spans import Span
from triptych.demo import MODEL_DIR
from triptych.engines.base import EngineOptions
from triptych.engines.mock.engine import MockEngine
from triptych.kv.block_hash import block_hashes
from triptych.kv.prompt_keys import prompt_keys
from triptych.simulate.profiles import DEMO_CPU, SECOND
from triptych.transfer.inproc import InprocTransfer

STEP_S = DEMO_CPU.rates.step / SECOND
IDS = list(range(1, 101))


@asynccontextmanager
async def engine(span=Span.EPD, args=("--pace", "demo-cpu"), transfer=None):
    options = EngineOptions(model_path=str(MODEL_DIR), model_name="m", span=span, media=MediaLimits(), args=args)
    one = MockEngine(options)
    await one.start(transfer or InprocTransfer(TransferConfig()))
    try:
        yield one
    finally:
        await one.stop()
        await one.stop()


def request(ids=IDS, media=(), kv=None, generated_ids=(), **sampling):
    settings = Sampling(**{"max_tokens": 20, "temperature": 0.0, **sampling})
    return GenerateRequest(
        id="r",
        model="m",
        token_ids=list(ids),
        sampling=settings,
        media=list(media),
        kv=kv,
        generated_ids=list(generated_ids),
    )


def medium(name="h"):
    return Picture(content_hash=name, format="PNG", data=picture(112, 112), width=112, height=112)


async def told(one):
    """Blocks that it holds by what it says to a new follower."""
    log = one.abilities.kv_reports.follow()
    batch = await anext(log)
    await log.aclose()
    assert batch.reset
    return {number for change in batch.changes for number in unpacked(change.hashes)}


async def answer(one, asked):
    return [token async for delta in one.abilities.generating.generate(asked) for token in delta.token_ids]


@pytest.mark.event_loop(kind="virtual")
async def test_it_says_the_same_and_takes_the_time_of_its_steps():
    async with engine() as one:
        begun = asyncio.get_running_loop().time()
        assert await answer(one, request()) == IDS[:20]
        assert asyncio.get_running_loop().time() - begun > 20 * STEP_S
        begun = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(answer(one, request([n, *IDS])) for n in range(200, 208)))
        assert [ids[0] for ids in answers] == list(range(200, 208))
        assert asyncio.get_running_loop().time() - begun < 8 * 20 * STEP_S, "what runs at once shares its steps"


@pytest.mark.event_loop(kind="virtual")
async def test_a_prefix_that_it_holds_is_told_of_and_not_computed_again():
    async with engine() as one:
        long = [*range(1, 451)] * 4
        took = []
        for _ in range(2):
            begun = asyncio.get_running_loop().time()
            await answer(one, request(long, max_tokens=1))
            took.append(asyncio.get_running_loop().time() - begun)
        assert took[1] < took[0] / 2, "90 ms of prefill, and then next to nothing"
        assert await told(one) == set(block_hashes(prompt_keys(long), 16))


async def test_changes_reach_who_follows():
    async with engine() as one:
        log = one.abilities.kv_reports.follow()
        assert (await anext(log)).changes == []
        await answer(one, request())
        stored = await anext(log)
        assert [change.stored for change in stored.changes] == [True]
        assert list(unpacked(stored.changes[0].hashes)) == block_hashes(prompt_keys(IDS), 16)
        await log.aclose()


async def test_a_cancelled_request_frees_its_blocks_at_once():
    async with engine() as one:
        for taken in (0, 1):
            stream = one.abilities.generating.generate(request([7, taken], max_tokens=10_000, ignore_eos=True))
            for _ in range(taken):
                await anext(stream)
            asking = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            asking.cancel()
            with suppress(asyncio.CancelledError):  # on a busy machine the token is there already
                await asking
            await stream.aclose()
        pool = one._pace._model.pool
        assert pool.free == pool.blocks
        assert one.stats().running == 0


async def test_a_request_that_could_never_fit_is_refused():
    async with engine() as one:
        with pytest.raises(BadRequest, match="do not fit a KV cache of 65536"):
            await answer(one, request(max_tokens=70_000, ignore_eos=True))


async def test_prefill_and_decode_apart():
    transfer = InprocTransfer(TransferConfig())
    await transfer.start()
    async with engine(Span.EP, transfer=transfer) as prefill, engine(Span.D, transfer=transfer) as decode:
        asked = request(media=[medium()], ids=[*IDS, IMAGE_ID])
        begun = asyncio.get_running_loop().time()
        first = await prefill.abilities.prefilling.prefill(asked, [])
        assert asyncio.get_running_loop().time() - begun > DEMO_CPU.rates.encoding(16) / SECOND + STEP_S
        assert first.delta.token_ids == IDS[:1]
        rest = await answer(decode, request(asked.token_ids, asked.media, first.kv, first.delta.token_ids))
        assert first.delta.token_ids + rest == IDS[:20]
        assert await told(prefill) == await told(decode)
        assert len(await told(prefill)) == (len(IDS) + 16) // 16
    await transfer.close()


@pytest.mark.event_loop(kind="virtual")
async def test_media_that_it_has_encoded_take_no_time():
    async with engine(Span.E) as one:
        took = []
        for _ in range(2):
            begun = asyncio.get_running_loop().time()
            await one._pace.encode([(f"{index}", 16) for index in range(40)])
            took.append(asyncio.get_running_loop().time() - begun)
        assert took == pytest.approx([DEMO_CPU.rates.encoding(40 * 16) / SECOND, 0.0], abs=0.05)


async def test_unknown_profiles_list_the_known():
    with pytest.raises(ConfigError, match="unknown profile fast; known: llama-8b-h100, demo-cpu"):
        await engine(args=("--pace", "fast")).__aenter__()


async def test_without_it_nothing_is_told():
    async with engine(args=()) as one:
        assert one.abilities.kv_reports is None


async def test_it_says_so_when_its_steps_end(monkeypatch):
    async with engine() as one:
        failed = asyncio.create_task(one.failed())
        await answer(one, request(max_tokens=1))
        assert not failed.done()
        monkeypatch.setattr(one._pace._model, "plan", lambda: 1 / 0)
        stream = one.abilities.generating.generate(request())
        asking = asyncio.create_task(anext(stream))
        assert "ZeroDivisionError" in await failed
        asking.cancel()
        await asyncio.wait({asking})
