"""Frames in place of embeddings: decoded by an encode worker, moved by the transfer, checked where they arrive."""

from __future__ import annotations

from contextlib import asynccontextmanager

import msgspec
import pytest

from support.checkpoints import copy_demo
from triptych.cache.embedding import EmbeddingCache
from triptych.config.media import MediaLimits
from triptych.config.transfer import TransferConfig
from triptych.contracts.errors import BadRequest, PayloadTooLarge
from triptych.contracts.media import FILE_TYPES, Video
from triptych.contracts.spans import Span
from triptych.contracts.stages import EncodeRequest
from triptych.engines.abilities import Encoded
from triptych.engines.base import EngineOptions
from triptych.engines.encoder.engine import EncoderEngine
from triptych.stages.encode import EncodeStage
from triptych.stages.receive import Receiver
from triptych.transfer.inproc import InprocTransfer

pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
np = pytest.importorskip("numpy")
videos = pytest.importorskip("support.videos")

DATA = videos.video(64, 48, frames=12)
SEEN = (0, 3, 6, 9)
SHAPE = (len(SEEN), 48, 64, 3)
FILM = Video(content_hash="film", format="MP4", data=DATA, width=64, height=48, num_frames=12, frame_indices=SEEN)


@asynccontextmanager
async def worker(folder, limits=None, config=None):
    """(stage, transfer, card, engine) of an encode worker."""
    folder.mkdir(exist_ok=True)
    checkpoint = copy_demo(folder, model_type="llava_next_video", vision_config={"image_size": 196, "patch_size": 14})
    transfer, cache = InprocTransfer(config or TransferConfig()), EmbeddingCache(1 << 24)
    engine = EncoderEngine(
        EngineOptions(model_path=str(checkpoint), model_name="m", span=Span.E, media=limits or MediaLimits())
    )
    await transfer.start()
    card = await engine.start(transfer)
    try:
        yield EncodeStage(engine.abilities.encoding, transfer, cache), transfer, card, engine
    finally:
        await cache.close()
        assert transfer.stats().buffers == transfer.stats().leases, "nothing is left but what waits to be fetched"
        await engine.stop()
        await transfer.close()


def asked(*media):
    return EncodeRequest(id="r", model="m", media=list(media))


async def test_the_frames_that_the_model_sees_arrive(tmp_path):
    taker = InprocTransfer(TransferConfig())
    await taker.start()
    async with worker(tmp_path / "model") as (stage, _, card, engine):
        assert (card.embedding, card.by_frames) == (None, ("video",))
        [made] = (await stage.answer(asked(FILM))).media
        assert (made.embedding.shape, made.embedding.dtype, made.cached) == (SHAPE, "uint8", False)
        [again] = (await stage.answer(asked(msgspec.structs.replace(FILM, data=b"")))).media
        assert again.cached
        assert engine.stats().encoded == 1, "a film that comes again is not decoded again"
        cache = EmbeddingCache(1 << 24)
        named = msgspec.structs.replace(FILM, data=b"", embedding=made.embedding)
        received = await Receiver(taker, cache, card).embeddings([named])
        [buffer] = received.buffers
        frames = np.frombuffer(buffer.data, np.uint8).reshape(buffer.shape)
        assert (frames == videos.every_frame(DATA)[list(SEEN)]).all()
        del frames
        received.close()
        await cache.close()
    await taker.close()


@pytest.mark.parametrize("stated", [{"frame_indices": (0, 3)}, {"width": 48, "height": 64}, {"height": 47}], ids=str)
async def test_other_frames_than_those_of_the_medium_are_refused(tmp_path, stated):
    async with worker(tmp_path / "model") as (stage, transfer, card, _):
        [made] = (await stage.answer(asked(FILM))).media
        other = msgspec.structs.replace(FILM, data=b"", embedding=made.embedding, **stated)
        with pytest.raises(BadRequest, match=r"\[4, 48, 64, 3\] uint8 are not those of this video"):
            await Receiver(transfer, EmbeddingCache(0), card).embeddings([other])


async def test_a_model_that_takes_frames_takes_no_embedding_of_them(tmp_path):
    async with worker(tmp_path / "model") as (_, transfer, card, _):
        [buffer] = await transfer.allocate([(196, 8)], "float32")
        embedding = transfer.export(buffer)
        buffer.close()
        named = msgspec.structs.replace(FILM, data=b"", embedding=embedding)
        with pytest.raises(BadRequest, match="not those of this video"):
            await Receiver(transfer, EmbeddingCache(0), card).embeddings([named])


async def test_limits_bound_what_is_decoded_and_what_is_handed_over(tmp_path):
    async def refused(message, limits=None, config=None):
        async with worker(tmp_path / "model", limits, config) as (stage, transfer, _, _):
            with pytest.raises(PayloadTooLarge, match=message):
                await stage.answer(asked(FILM))
            assert transfer.stats().used_bytes == 0

    async def main():
        await refused("--media-max-video-work", MediaLimits(media_max_video_work=48 * 64 * 11))
        await refused("--media-max-video-pixels", MediaLimits(media_max_video_pixels=48 * 64 * 3))
        long = tuple(range(400))
        film = msgspec.structs.replace(FILM, data=videos.video(64, 48, frames=400), frame_indices=long)
        async with worker(tmp_path / "model", config=TransferConfig(arena_bytes=1 << 20)) as (stage, transfer, _, _):
            with pytest.raises(PayloadTooLarge, match="arena"):
                await stage.answer(asked(film))
            assert transfer.stats().used_bytes == 0

    await main()


class Mixed:
    """An encoder of a model that takes embeddings of pictures and frames of videos."""

    async def encode(self, media):
        return [
            Encoded(memoryview(bytes([3] * 12)), (1, 2, 2, 3), "uint8", {})
            if medium.kind == "video"
            else Encoded(memoryview(bytes([7] * 8)), (1, 2), "float32", {})
            for medium in media
        ]


async def test_embeddings_and_frames_may_be_asked_for_in_one_call():
    transfer, cache = InprocTransfer(TransferConfig()), EmbeddingCache(1 << 20)
    await transfer.start()
    kinds = ["image", "video", "image"]
    media = [FILE_TYPES[kind](content_hash=str(n), data=b"x") for n, kind in enumerate(kinds)]
    answer = await EncodeStage(Mixed(), transfer, cache).answer(asked(*media))
    assert [one.embedding.dtype for one in answer.media] == ["float32", "uint8", "float32"]
    buffers = await transfer.fetch([one.embedding for one in answer.media])
    assert [bytes(buffer.data)[0] for buffer in buffers] == [7, 3, 7]
    for buffer in buffers:
        buffer.close()
    await cache.close()
    assert transfer.stats().used_bytes == 0
    await transfer.close()
