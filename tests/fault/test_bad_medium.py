"""One request's bad medium: it fails that request, and none that shares other media with it."""

import asyncio
import base64
import gc

import pytest

from support.checkpoints import image_part, picture, picture_url
from support.deployment import deployment
from support.loops import until
from triptych.contracts.media import Medium

BROKEN = "data:image/png;base64," + base64.b64encode(picture(64, 64, "teal")[:-30]).decode()
RED = picture_url(64, 64, "red")


class HeldBack:
    """Lets an encode worker's engine begin with its calls only once ``go`` is set."""

    def __init__(self, worker):
        self.calls = 0
        self.go = asyncio.Event()
        self._encode = worker.engine.abilities.encoding.encode
        worker.engine.abilities.encoding.encode = self._later

    async def _later(self, media):
        self.calls += 1
        await self.go.wait()
        return await self._encode(media)


async def test_fails_no_request_that_waits_for_a_sound_one_of_the_same_call():
    async with deployment(spans=["e", "pd"], fallback=False) as d:
        encoder = d.workers[0]
        held = HeldBack(encoder)
        bad = asyncio.create_task(d.chat([image_part(BROKEN), image_part(RED)]))
        await until(lambda: held.calls == 1, "both pictures are being encoded, in one call")
        sound = [asyncio.create_task(d.chat([image_part(RED)])) for _ in range(3)]
        await until(lambda: encoder.counts["embedding_cache_shared_total"] == 3, "the others wait for the red one")
        held.go.set()
        refused = await bad
        assert refused.status_code == 400, refused.text
        for answer in await asyncio.gather(*sound):
            assert answer.status_code == 200, answer.text
        assert encoder.counts["engine_encoded_media_total"] == 1, "once for all three"
        await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")


async def test_fails_all_who_ask_for_it():
    async with deployment(spans=["e", "pd"], fallback=False) as d:
        held = HeldBack(d.workers[0])
        asked = [asyncio.create_task(d.chat([image_part(RED), image_part(BROKEN)]))]
        await until(lambda: held.calls == 1, "both pictures are being encoded, in one call")
        asked += [asyncio.create_task(d.chat([image_part(BROKEN), image_part(RED)])) for _ in range(4)]
        await until(lambda: d.workers[0].counts["embedding_cache_shared_total"] == 8, "the others wait for them")
        held.go.set()
        for place, answer in zip((1, 0, 0, 0, 0), await asyncio.gather(*asked), strict=True):
            assert answer.status_code == 400, answer.text
            error, field = answer.json()["error"], f"messages[0].content[{place}].image_url"
            assert (error["param"], error["code"]) == (field, "media_damaged"), "each hears of its own field"
            assert error["message"] == f"{field}: the image is damaged or truncated"
        assert held.calls == 1, "what is bad is found out once"


@pytest.mark.parametrize("spans", [["epd"], ["e", "pd"]], ids=str)
@pytest.mark.parametrize("url", [BROKEN, "data:image/png;base64,AAAA"], ids=["at the worker", "at the edge"])
async def test_leaves_no_media_behind(spans, url):
    def media():
        return sum(type(one) is Medium for one in gc.get_objects())

    async with deployment(spans=spans, fallback=False) as d:
        gc.collect()
        gc.disable()
        try:
            before = media()
            for stream in (False, True):
                refused = await d.chat([image_part(url), image_part(RED)], stream=stream)
                assert refused.status_code in (400, 415), refused.text
            await until(lambda: media() <= before, "nothing waits for the garbage collector")
        finally:
            gc.enable()
