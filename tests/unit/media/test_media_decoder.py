import asyncio
from contextlib import asynccontextmanager

import pytest

from support.loops import until
from support.media_files import picture
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, MediaMissing, PayloadTooLarge, Unavailable
from triptych.contracts.media import Medium, Picture, Sound, Video
from triptych.media.decoder import MediaDecoder, expected_bytes
from triptych.media.formats.sniff import PIXEL_BYTES

LIMITS = MediaLimits(media_decode_workers=1)
SIZE_BYTES = 16 * 8 * PIXEL_BYTES


def medium(name: str, data: bytes | None = None, **fields) -> Medium:
    return Picture(content_hash=name, format="PNG", data=picture() if data is None else data, **fields)


class Gate:
    """Stands between a decoder and its sandbox: counts, and holds what comes until ``go``."""

    def __init__(self, decoder, go=True):
        self.runs = 0
        self.go = asyncio.Event()
        self._real = decoder.sandbox.decode
        if go:
            self.go.set()
        decoder.sandbox.decode = self

    async def __call__(self, *args):
        self.runs += 1
        await self.go.wait()
        return await self._real(*args)


async def decode(decoder, *media):
    async with decoder.decoded(media) as decoded:
        return decoded


@asynccontextmanager
async def decoding(go=True, **limits):
    """A decoder, and the gate before its child process."""
    decoder = MediaDecoder(MediaLimits(**{"media_decode_workers": 1, **limits}))
    try:
        yield decoder, Gate(decoder, go)
    finally:
        await decoder.close()


async def test_a_repeat_comes_from_the_cache():
    async with decoding() as (decoder, gate):
        [first] = await decode(decoder, medium("a"))
        [again] = await decode(decoder, medium("a", b"", width=16, height=8))
        assert again is first
        assert (gate.runs, decoder.cache.size_bytes) == (1, SIZE_BYTES)
        with pytest.raises(MediaMissing):
            await decode(decoder, medium("b", b"", width=16, height=8))


async def test_the_cache_is_bounded_in_bytes():
    async with decoding(media_decoded_cache_bytes=SIZE_BYTES) as (decoder, gate):
        for name in ("a", "b", "a"):
            await decode(decoder, medium(name))
        assert (gate.runs, len(decoder.cache)) == (3, 1)


@pytest.mark.parametrize("way", ["limit", "keep"])
async def test_the_cache_can_be_off(way):
    limits = MediaLimits(media_decoded_cache_bytes=0) if way == "limit" else LIMITS
    decoder = MediaDecoder(limits, keep=way == "limit")
    gate = Gate(decoder)
    await decode(decoder, medium("a"))
    await decode(decoder, medium("a"))
    assert (gate.runs, len(decoder.cache)) == (2, 0)
    await decoder.close()


async def test_equal_media_are_decoded_once_and_a_cancelled_waiter_touches_no_other():
    async with decoding(go=False) as (decoder, gate):
        tasks = [asyncio.create_task(decode(decoder, medium("a"))) for _ in range(3)]
        await until(lambda: gate.runs, "one decodes")
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        gate.go.set()
        [second], [third] = await asyncio.gather(*tasks[1:])
        assert second is third
        assert gate.runs == 1


async def test_damage_is_reported_and_not_remembered():
    async with decoding() as (decoder, _):
        for _ in range(2):
            with pytest.raises(BadRequest, match="damaged"):
                await decode(decoder, medium("b"), medium("a", picture()[:60]))
        assert (len(decoder.cache), decoder.room.taken_bytes) == (1, 0)


async def test_a_request_waits_for_room_for_all_of_its_media_and_can_be_cancelled():
    async with decoding(media_decoded_bytes=3 * SIZE_BYTES) as (decoder, gate):
        first = decoder.decoded([medium("a"), medium("b")])
        await first.__aenter__()
        assert decoder.room.taken_bytes == 2 * SIZE_BYTES
        second = asyncio.create_task(decode(decoder, medium("c"), medium("d")))
        third = asyncio.create_task(decode(decoder, medium("e"), medium("f")))
        await until(lambda: decoder.room.waiting == 2, "both wait")
        metrics = {one.name: one.value for one in decoder.metrics()}
        assert metrics["triptych_media_decoded_waiting"] == 2
        assert metrics["triptych_media_decoded_bytes"] == 2 * SIZE_BYTES
        second.cancel()
        await asyncio.wait([second])
        assert gate.runs == 2, "who waits for room decodes nothing"
        await first.__aexit__(None, None, None)
        assert len(await third) == 2
        assert (gate.runs, decoder.room.taken_bytes) == (4, 0)


async def test_what_can_never_have_room_is_refused_by_the_flag():
    async with decoding(media_decoded_bytes=2 * SIZE_BYTES - 1) as (decoder, gate):
        with pytest.raises(PayloadTooLarge, match=rf"{2 * SIZE_BYTES:,} bytes; .*\(--media-decoded-bytes\)"):
            await decode(decoder, medium("a"), medium("b"))
        assert gate.runs == 0


def test_what_a_medium_will_take_is_bounded_by_the_limits():
    film = Video(content_hash="", width=640, height=480, frame_indices=(0, 3))
    assert expected_bytes(film, LIMITS) == 2 * 640 * 480 * 3
    assert expected_bytes(film, MediaLimits(media_max_video_pixels=1000)) == 3000
    sound = Sound(content_hash="", num_samples=48_000, sample_rate=48_000, decode_rate=16_000)
    assert expected_bytes(sound, LIMITS) == 16_000 * 4
    assert expected_bytes(sound, MediaLimits(media_max_audio_s=0.5)) == 8_000 * 4
    lying = medium("a", width=9_000, height=9_000)
    assert expected_bytes(lying, LIMITS) == SIZE_BYTES


async def test_close_ends_waiters():
    async with decoding(go=False) as (decoder, gate):
        tasks = [asyncio.create_task(decode(decoder, medium(name))) for name in "abc"]
        await until(lambda: gate.runs == 3, "all are on their way")
        await decoder.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in results] == [Unavailable] * 3
        with pytest.raises(Unavailable):
            await decode(decoder, medium("d"))
