"""A deployment in a thread, for tables of many small cases that would each pay for starting one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx

from support.deployment import JSON, Deployed, deployment
from support.loops import BACKGROUND, run

LIMIT_S = 120.0


class Served:
    """A deployment in another thread, and a client of it. Its handles may be read from here, not called."""

    def __init__(self, deployed: Deployed, http: httpx.Client) -> None:
        self.deployed = deployed
        self.http = http
        self.url = deployed.url

    def chat(self, content: Any = "hello", **fields: Any) -> httpx.Response:
        message = {"role": "user", "content": content}
        return self.post({"model": "demo", "messages": [message], "temperature": 0, **fields})

    def post(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> httpx.Response:
        return self.http.post(path, json=body)

    def complete(self, prompt: Any = "hello", **fields: Any) -> httpx.Response:
        return self.post({"model": "demo", "prompt": prompt, "temperature": 0, **fields}, "/v1/completions")


@contextlib.contextmanager
def served(limit_s: float = LIMIT_S, **settings: Any) -> Iterator[Served]:
    """``deployment(**settings)`` in a thread of its own, until the end of the block, or for ``limit_s``."""
    started: dict[str, Any] = {}
    up = threading.Event()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            started["deployed"] = await stack.enter_async_context(deployment(**settings))
            started["stop"], started["loop"] = asyncio.Event(), asyncio.get_running_loop()
            up.set()
            await started["stop"].wait()

    def thread() -> None:
        try:
            run(main(), limit_s=limit_s)
        except BaseException as error:
            started["error"] = error
        finally:
            up.set()

    runner = threading.Thread(target=thread, name=BACKGROUND)
    runner.start()
    assert up.wait(20), "the deployment did not start within 20 s"
    try:
        if "error" not in started:
            url = started["deployed"].url
            with httpx.Client(base_url=url, timeout=30, trust_env=False, verify=False, headers=JSON) as http:
                yield Served(started["deployed"], http)
    finally:
        if "stop" in started:
            started["loop"].call_soon_threadsafe(started["stop"].set)
        runner.join(20)
        if "error" in started:
            raise started["error"]
