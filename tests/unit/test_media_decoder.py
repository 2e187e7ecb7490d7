import asyncio
import threading

import pytest
from media_files import picture

from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, Unavailable
from triptych.contracts.request import Medium
from triptych.media import decoder as module
from triptych.media.decoder import MediaDecoder
from triptych.media.image import PIXEL_BYTES

LIMITS = MediaLimits()
SIZE_BYTES = 16 * 8 * PIXEL_BYTES


def medium(name: str, data: bytes | None = None) -> Medium:
    return Medium(kind="image", content_hash=name, format="PNG", data=picture() if data is None else data)


class Gate:
    """Stands in for ``decode_image``: counts, and holds the thread until ``go``."""

    def __init__(self, monkeypatch, go=False):
        self.runs = 0
        self.go = threading.Event()
        self.loop_saw = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._real = module._KINDS["image"]
        if go:
            self.go.set()
        monkeypatch.setitem(module._KINDS, "image", self._real._replace(decode=self))

    def __call__(self, *args):
        self.runs += 1
        self._loop.call_soon_threadsafe(self.loop_saw.set)
        assert self.go.wait(10)
        return self._real.decode(*args)


def test_a_repeat_comes_from_the_cache(monkeypatch):
    async def body():
        gate = Gate(monkeypatch, go=True)
        decoder = MediaDecoder(LIMITS)
        first = await decoder.decode(medium("a"))
        assert await decoder.decode(medium("a")) is first
        assert (gate.runs, decoder.cache.size_bytes) == (1, SIZE_BYTES)
        await decoder.close()

    asyncio.run(body())


def test_the_cache_is_bounded_in_bytes_and_can_be_off(monkeypatch):
    async def body():
        gate = Gate(monkeypatch, go=True)
        decoder = MediaDecoder(LIMITS, cache_bytes=SIZE_BYTES)
        for name in ("a", "b", "a"):
            await decoder.decode(medium(name))
        assert (gate.runs, len(decoder.cache)) == (3, 1)
        await decoder.close()
        off = MediaDecoder(LIMITS, cache_bytes=0)
        await off.decode(medium("a"))
        await off.decode(medium("a"))
        assert (gate.runs, len(off.cache)) == (5, 0)
        await off.close()

    asyncio.run(body())


def test_equal_media_are_decoded_once_and_a_cancelled_waiter_touches_no_other(monkeypatch):
    async def body():
        gate = Gate(monkeypatch)
        decoder = MediaDecoder(LIMITS)
        tasks = [asyncio.create_task(decoder.decode(medium("a"))) for _ in range(3)]
        await gate.loop_saw.wait()
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        gate.go.set()
        second, third = await asyncio.gather(*tasks[1:])
        assert second is third
        assert gate.runs == 1
        await decoder.close()

    asyncio.run(body())


def test_damage_is_reported_and_not_remembered():
    async def body():
        decoder = MediaDecoder(LIMITS)
        for _ in range(2):
            with pytest.raises(BadRequest, match="damaged"):
                await decoder.decode(medium("a", picture()[:60]))
        assert len(decoder.cache) == 0
        await decoder.close()

    asyncio.run(body())


def test_close_ends_waiters_and_threads(monkeypatch):
    async def body():
        gate = Gate(monkeypatch)
        decoder = MediaDecoder(LIMITS, threads=1)
        tasks = [asyncio.create_task(decoder.decode(medium(name))) for name in "abc"]
        await gate.loop_saw.wait()
        await decoder.close()
        gate.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in results] == [Unavailable] * 3
        with pytest.raises(Unavailable):
            await decoder.decode(medium("d"))
        await decoder.close()
        assert gate.runs == 1

    asyncio.run(body())
    for thread in threading.enumerate():
        if thread.name.startswith("triptych-decode"):
            thread.join(10)
            assert not thread.is_alive()
