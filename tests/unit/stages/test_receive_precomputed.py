"""Precomputed embeddings at the worker: nothing that the wire says of them is believed."""

import asyncio
import struct
import threading

import pytest

from triptych.cache.embedding import EmbeddingCache
from triptych.config.transfer import TransferConfig
from triptych.contracts.card import EmbeddingSpec, ModelCard
from triptych.contracts.errors import BadRequest, MediaMissing
from triptych.contracts.media import Picture, PrecomputedEmbedding
from triptych.contracts.stages import EncodeRequest
from triptych.stages import precomputed
from triptych.stages.encode import EncodeStage
from triptych.stages.receive import Receiver
from triptych.transfer.inproc import InprocTransfer

WIDTH = 8
VALUES = struct.pack("<16f", *range(16))
FLOAT32 = EmbeddingSpec(WIDTH, "float32")
LARGE = 4096
"""Rows that are too many to be handled on the event loop."""


def given(name="x", shape=(2, WIDTH), dtype="float32", data=VALUES):
    return PrecomputedEmbedding(kind="image", content_hash=name, data=data, shape=shape, dtype=dtype)


async def received(*media, spec=FLOAT32, before=()):
    """(shape, dtype, bytes) of each, after which nothing is left in the arena."""
    transfer, cache = InprocTransfer(TransferConfig()), EmbeddingCache(1 << 24)
    await transfer.start()
    receiver = Receiver(transfer, cache, ModelCard(name="m", path="x", context_length=1, embedding=spec))
    try:
        for one in before:
            (await receiver.embeddings([one])).close()
        got = await receiver.embeddings(media)
        made = [one and (tuple(one.shape), one.dtype, bytes(one.data)) for one in got.buffers]
        got.close()
        return made
    finally:
        await cache.close()
        assert transfer.stats().used_bytes == 0
        await transfer.close()


async def test_values_come_to_lie_where_fetched_ones_do():
    raw = Picture(content_hash="raw", format="PNG", data=b"png")
    other = given("y", (1, WIDTH), data=VALUES[:32])
    assert await received(raw, given(), other, given()) == [
        None,
        ((2, WIDTH), "float32", VALUES),
        ((1, WIDTH), "float32", VALUES[:32]),
        ((2, WIDTH), "float32", VALUES),
    ]


async def test_large_ones_go_through_a_thread_with_the_same_result():
    data = VALUES * (LARGE // 2)
    assert await received(given(shape=(LARGE, WIDTH), data=data)) == [((LARGE, WIDTH), "float32", data)]


async def test_another_dtype_becomes_the_models():
    torch = pytest.importorskip("torch")
    wanted = bytes(torch.arange(16.0).bfloat16().untyped_storage())
    assert await received(given(), spec=EmbeddingSpec(WIDTH, "bfloat16")) == [((2, WIDTH), "bfloat16", wanted)]


async def test_a_name_is_enough_where_the_embedding_is_kept():
    assert await received(given(data=b""), before=[given()]) == [((2, WIDTH), "float32", VALUES)]


async def test_a_name_alone_is_missed():
    with pytest.raises(MediaMissing):
        await received(given(data=b""))


@pytest.mark.parametrize(
    "medium",
    [
        given(shape=(2, WIDTH + 1)),
        given(shape=(0, WIDTH), data=b""),
        given(shape=(-2, -WIDTH)),
        given(shape=(-2, WIDTH)),
        given(shape=(3, WIDTH)),
        given(shape=(1, WIDTH)),
        given(data=VALUES[:-1]),
        given(dtype="float64"),
        given(dtype="int32"),
        given(dtype="bfloat16"),
        given(data=VALUES[:-4] + b"\0\0\x80\x7f"),
        given(shape=(LARGE, WIDTH), data=VALUES * (LARGE // 2 - 1) + VALUES[:-4] + b"\0\0\xc0\xff"),
    ],
)
async def test_a_wrong_one_is_the_requests_fault_and_takes_nothing(medium):
    good = given("good")
    with pytest.raises(BadRequest):
        await received(good, medium)


async def test_a_model_without_embeddings_refuses():
    with pytest.raises(BadRequest, match="takes no precomputed embeddings"):
        await received(given(), spec=None)


async def test_the_encode_stage_refuses_them():
    stage = EncodeStage(None, None, EmbeddingCache(0))
    with pytest.raises(BadRequest, match="not to be encoded"):
        await stage.answer(EncodeRequest(id="r", model="m", media=[given()]))


async def test_a_cancelled_one_gives_its_memory_back_once_nobody_writes_to_it(monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def slow(data, dtype):
        begun.set()
        assert go.wait(10)
        return True

    monkeypatch.setattr(precomputed, "all_finite", slow)
    transfer = InprocTransfer(TransferConfig())
    await transfer.start()
    medium = given(shape=(LARGE, WIDTH), data=VALUES * (LARGE // 2))
    task = asyncio.create_task(precomputed.placed([medium], transfer, "float32"))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    assert transfer.stats().used_bytes > 0
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert transfer.stats().used_bytes == 0
    await transfer.close()
