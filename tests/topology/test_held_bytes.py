"""Bodies and media that requests hold are bounded, of one request and of all together."""

from __future__ import annotations

import asyncio
import base64
import re

from support.checkpoints import image_part, picture
from support.deployment import deployment
from support.errors import check_error
from support.media_site import media_site
from triptych.config.media import MediaLimits
from triptych.frontend.openai.weight import BYTES_A_TOKEN

SIZE = 40_000
"""Of a picture with what follows its end."""


def padded(colour):
    data = picture(56, 56, colour)
    return image_part("data:;base64," + base64.b64encode(data + bytes(SIZE - len(data))).decode())


def held_bytes(metrics):
    return float(re.search(r"^triptych_held_bytes (\S+)$", metrics, re.MULTILINE)[1])


async def test_media_of_one_request_are_bounded_together():
    limits = MediaLimits(media_max_request_bytes=2 * SIZE)
    async with deployment(limits=limits) as d:
        parts = [padded(colour) for colour in ("red", "green", "blue")]
        assert (await d.chat(parts[:2])).status_code == 200
        error = check_error(await d.chat(parts), 413)
        assert error["code"] == "media_too_large"
        assert "80,000 bytes together (--media-max-request-bytes)" in error["message"]
        assert re.fullmatch(r"messages\[0\]\.content\[[012]\]\.image_url", error["param"])


async def test_requests_that_hold_too_much_together_get_429_and_others_go_on():
    frontend = {"max_held_bytes": 250_000}
    async with deployment(engine_args=("--prefill-ms", "20000"), frontend=frontend) as d:
        waiting = asyncio.create_task(d.chat([padded("red")]))  # 53,000 of the body, 40,000 decoded
        await d.worker.busy(1)
        other = asyncio.create_task(d.chat([padded("green")]))
        await d.worker.busy(2)
        refused = await d.chat([padded("blue")])
        error = check_error(refused, 429)
        assert error["code"] == "memory_full"
        assert "250,000 (--max-held-bytes)" in error["message"]
        assert int(refused.headers["retry-after"]) >= 1
        for task in (waiting, other):
            task.cancel()
        await asyncio.wait([waiting, other])
        await d.worker.idle()
        assert held_bytes((await d.http.get("/metrics")).text) == 0


async def test_a_picture_that_many_ask_about_is_held_once():
    limits, frontend = MediaLimits(media_allow_private=True), {"max_held_bytes": 60_000}
    async with (
        media_site() as site,
        deployment(engine_args=("--prefill-ms", "20000"), frontend=frontend, limits=limits) as d,
    ):
        asked = []
        for number in range(1, 9):
            asked.append(asyncio.create_task(d.chat([image_part(f"{site}/kept.png")])))
            await d.worker.busy(number)
        assert 40_000 < held_bytes((await d.http.get("/metrics")).text) < 50_000
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)


async def test_what_becomes_of_a_text_is_held_too():
    async with deployment(engine_args=("--prefill-ms", "20000", "--max-model-len", "200000")) as d:
        text = "word " * 20_000
        asked = asyncio.create_task(d.chat(text))
        await d.worker.busy(1)
        held = held_bytes((await d.http.get("/metrics")).text)
        assert held > 2 * len(text) + BYTES_A_TOKEN * 20_000, "the body, the text and its tokens"
        asked.cancel()
        await asyncio.wait([asked])
        await d.worker.idle()
        assert held_bytes((await d.http.get("/metrics")).text) == 0
