"""A frontend that lets so many requests at its workers at once."""

from __future__ import annotations

import asyncio

from support.deployment import deployment
from support.loops import until_async


async def test_requests_wait_their_turn_and_too_many_are_told_so() -> None:
    settings = {"max_running": 1, "max_waiting": 1, "max_wait_s": 20.0}
    async with deployment(frontend=settings, engine_args=("--itl-ms", "5")) as d:
        slow = asyncio.create_task(d.chat("x", max_tokens=4000, ignore_eos=True))
        await d.worker.busy()
        patient = asyncio.create_task(d.chat("hello"))

        async def one_waits() -> bool:
            return "triptych_requests_waiting 1" in (await d.http.get("/metrics")).text

        await until_async(one_waits, "the second one waits")
        answer = await d.chat("hello")
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "queue_full"
        assert answer.headers["retry-after"] == "1"
        slow.cancel()
        assert (await patient).status_code == 200
        await asyncio.gather(slow, return_exceptions=True)
        await d.worker.idle()
