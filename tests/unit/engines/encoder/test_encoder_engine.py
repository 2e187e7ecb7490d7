"""The encode engine around its model: what it takes, refuses, bounds and counts. The model is a stand-in."""

import asyncio
import threading
from contextlib import asynccontextmanager

import msgspec
import pytest

from support.checkpoints import byte_level, copy_demo, picture, text_checkpoint
from support.loops import SOON_S, until
from triptych.config.media import MediaLimits
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import (
    BadRequest,
    ConfigError,
    MediaMissing,
    TooManyRequests,
    TriptychError,
    Unavailable,
    UnsupportedMedia,
)
from triptych.contracts.media import Picture, Video
from triptych.contracts.spans import Span
from triptych.engines.base import EngineOptions
from triptych.engines.encoder import engine as module
from triptych.engines.encoder.engine import EncoderEngine
from triptych.transfer.inproc import InprocTransfer

torch = pytest.importorskip("torch")
WIDTH = 128


class Model:
    """Embeddings full of the picture's red value; a red of 13 raises, 14 has a wrong shape, 15 a wrong grid."""

    width = WIDTH
    dtype = "float32"

    def __init__(self):
        self.batches = []
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def preprocess(self, medium, image):
        red = image.getpixel((0, 0))[0]
        side = 9 if red == 15 else 8  # of the demo model's squares
        return {"red": red, "image_grid_thw": torch.tensor([[1, side, side]])}

    def encode(self, batch):
        self.batches.append([one["red"] for one in batch])
        self.begun.set()
        assert self.go.wait(10)
        if any(one["red"] == 13 for one in batch):
            raise RuntimeError("the model stumbled")
        return [torch.full((16 + (one["red"] == 14), WIDTH), float(one["red"])) for one in batch]

    def is_fatal(self, error):
        return "dead" in str(error)


@pytest.fixture
def model(monkeypatch):
    made = Model()
    monkeypatch.setattr(module, "load", lambda checkpoint, **_: made)
    return made


def engine(folder, *args, span=Span.E):
    options = EngineOptions(model_path=str(folder), model_name="demo", span=span, media=MediaLimits(), args=args)
    return EncoderEngine(options)


def medium(red=1, width=112, height=112, type=Picture, **fields):
    data = picture(width, height, f"rgb({red}, 0, 0)")
    settings = {"content_hash": f"{red}-{width}-{height}", "format": "PNG", "data": data, **fields}
    return type(**settings)


@asynccontextmanager
async def started(tmp_path, *args):
    """A started engine, which is stopped twice at the end."""
    made = engine(copy_demo(tmp_path), *args)
    await made.start(InprocTransfer(TransferConfig()))
    try:
        yield made
    finally:
        await made.stop()
        await made.stop()


def encode(made, media):
    return made.abilities.encoding.encode(media)


def reds(encoded):
    return [int(torch.frombuffer(one.data, dtype=torch.float32)[0]) for one in encoded]


async def test_the_card_and_what_a_picture_becomes(tmp_path, model):
    made = engine(copy_demo(tmp_path))
    card = await made.start(InprocTransfer(TransferConfig()))
    assert made.abilities.names() == ("encoding",)
    assert made.capable_span is Span.E
    assert card.modalities == ("image", "video")
    assert (card.embedding.width, card.embedding.dtype) == (WIDTH, "float32")
    assert card.context_length == 4096
    (one,) = await encode(made, [medium(7)])
    assert one.shape == (16, WIDTH)
    assert one.metadata == {"image_grid_thw": (1, 8, 8)}
    assert len(one.data) == 16 * WIDTH * 4
    assert one.data.format == "B"
    assert reds([one]) == [7]
    assert await encode(made, []) == []
    await made.stop()


async def test_media_of_a_call_and_of_calls_at_the_same_time_share_batches(tmp_path, model):
    async with started(tmp_path) as made:
        model.batches.clear()
        model.begun.clear()
        model.go.clear()
        first = asyncio.create_task(encode(made, [medium(1)]))
        await asyncio.to_thread(model.begun.wait, 10)
        others = [asyncio.create_task(encode(made, [medium(red) for red in two])) for two in ((2, 3), (4, 5))]
        await until(lambda: len(made._started.embedder.batcher._waiting) == 4, "the others wait")
        assert made.stats().running == 3
        model.go.set()
        assert reds(await first) == [1]
        assert [reds(await other) for other in others] == [[2, 3], [4, 5]]
        assert [len(batch) for batch in model.batches] == [1, 4]
        stats = made.stats()
        assert (stats.running, stats.encoded, stats.encode_batches) == (0, 5, 2)


async def test_a_medium_that_fails_fails_its_own_call(tmp_path, model, caplog):
    async with started(tmp_path) as made:
        results = await asyncio.gather(
            encode(made, [medium(1), medium(13)]),
            encode(made, [medium(2)]),
            return_exceptions=True,
        )
        assert type(results[0]) is TriptychError
        assert "log" in results[0].message
        assert reds(results[1]) == [2]
        assert "the model stumbled" in caplog.text
        assert reds(await encode(made, [medium(3)])) == [3]
        assert made._room.taken_bytes == 0


@pytest.mark.parametrize(("red", "words"), [(14, r"\[17, 128\]"), (15, r"image_grid_thw \(1, 9, 9\)")])
async def test_what_does_not_fit_its_place_is_not_handed_out(tmp_path, model, red, words):
    async with started(tmp_path) as made:
        with pytest.raises(TriptychError, match=words):
            await encode(made, [medium(red)])


async def test_a_medium_without_data_is_asked_for(tmp_path, model):
    async with started(tmp_path) as made:
        with pytest.raises(MediaMissing):
            await encode(made, [medium(1), medium(2, data=b"")])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"type": Video}, UnsupportedMedia),
        ({"data": b"no picture"}, UnsupportedMedia),
        ({"data": picture(112, 112)[:60]}, BadRequest),
        ({"width": 900, "height": 4}, BadRequest),
    ],
    ids=["video", "no picture", "truncated", "too narrow"],
)
async def test_what_the_medium_is_at_fault_for(tmp_path, model, wrong, error):
    async with started(tmp_path) as made:
        with pytest.raises(error):
            await encode(made, [medium(1, **wrong)])
        assert reds(await encode(made, [medium(2)])) == [2]


async def test_the_size_that_a_medium_states_is_not_believed(tmp_path, model):
    async with started(tmp_path) as made:
        stated = medium(3)
        (one,) = await encode(made, [msgspec.structs.replace(stated, width=9999, height=3)])
        assert one.metadata == {"image_grid_thw": (1, 8, 8)}


async def test_a_bound_on_what_waits(tmp_path, model):
    async with started(tmp_path, "--max-waiting", "3") as made:
        model.begun.clear()
        model.go.clear()
        first = asyncio.create_task(encode(made, [medium(1), medium(2)]))
        await asyncio.to_thread(model.begun.wait, 10)
        with pytest.raises(TooManyRequests):
            await encode(made, [medium(3), medium(4)])
        third = asyncio.create_task(encode(made, [medium(5)]))
        await asyncio.sleep(0.01)
        model.go.set()
        assert reds(await first) == [1, 2]
        assert reds(await third) == [5]
        assert reds(await encode(made, [medium(red) for red in (6, 7, 8, 9)])) == [6, 7, 8, 9], "alone, any number may"


async def test_little_memory_only_makes_it_slower(tmp_path, model):
    """A picture counts for its pixels and patches; with room for three, all still get through."""
    async with started(tmp_path, "--max-prepared-mib", "1") as made:
        media = [medium(red) for red in range(20, 32)]
        assert reds(await encode(made, media)) == list(range(20, 32))
        assert max(map(len, model.batches)) <= 3
        assert made._room.taken_bytes == 0


async def test_cancelling_drops_what_has_not_begun(tmp_path, model):
    async with started(tmp_path) as made:
        model.batches.clear()
        model.begun.clear()
        model.go.clear()
        first = asyncio.create_task(encode(made, [medium(1)]))
        await asyncio.to_thread(model.begun.wait, 10)
        second, third = (asyncio.create_task(encode(made, [medium(red)])) for red in (2, 3))
        await until(lambda: len(made._started.embedder.batcher._waiting) == 2, "the others wait")
        second.cancel()
        await asyncio.wait([second])
        model.go.set()
        assert reds(await first) == [1]
        assert reds(await third) == [3]
        assert model.batches == [[1], [3]]
        assert made._room.taken_bytes == 0
        assert made.stats().running == 0


async def test_stopping_tells_who_waits(tmp_path, model):
    async with started(tmp_path) as made:
        model.begun.clear()
        model.go.clear()
        encoding = made.abilities.encoding
        tasks = [asyncio.create_task(encoding.encode([medium(red)])) for red in (1, 2)]
        await asyncio.to_thread(model.begun.wait, 10)
        await made.stop()
        for task in tasks:
            with pytest.raises(Unavailable):
                await task
        with pytest.raises(Unavailable):
            await encoding.encode([medium(3)])
        model.go.set()


async def test_a_dead_device_is_told(tmp_path, model):
    async with started(tmp_path) as made:
        watch = asyncio.create_task(made.failed())
        await encode(made, [medium(1)])
        assert not watch.done()
        model.encode = _dead
        made._started.embedder.batcher._run = _dead
        with pytest.raises(TriptychError):
            await encode(made, [medium(2)])
        assert "log" in await asyncio.wait_for(watch, SOON_S)


def _dead(batch):
    raise RuntimeError("the device is dead")


def test_other_spans_and_unknown_flags_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="span e, not pd"):
        engine(tmp_path, span=Span.PD)
    with pytest.raises(ConfigError, match=r"--frames.*--max-batch-patches"):
        engine(tmp_path, "--frames", "3")
    with pytest.raises(ConfigError, match="device"):
        engine(tmp_path, "--device", "abacus")


async def test_an_unknown_model_lists_the_known_ones(tmp_path):
    made = engine(text_checkpoint(tmp_path / "text", byte_level("a")))
    with pytest.raises(ConfigError, match=r"'llama'.*llava, llava_next, qwen2_5_vl, qwen2_audio, qwen2_vl"):
        await made.start(InprocTransfer(TransferConfig()))
