"""Real processes over a real NATS server: it goes away and comes back empty, and a worker is killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import pytest

from support.deployment import chat_body, http_client
from support.loops import SOON_S, until, until_async
from support.nats_server import nats_server
from support.processes import child, mock_worker

AWAY_S = 10.0


@pytest.fixture
def nats(tmp_path):
    with nats_server(tmp_path) as server:
        yield server


@contextlib.asynccontextmanager
async def deployed(nats, folder):
    """A frontend, two workers, and a client."""
    plane = ("--plane", nats.url)
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                child(*mock_worker("--instance-name", name, "--transfer", "inproc", *plane), run_dir=folder)
            )
            for name in ("a", "b")
        ]
        frontend = await stack.enter_async_context(
            child("frontend", "--port", "0", "--plan-header", *plane, run_dir=folder)
        )
        url = next(word for word in frontend.ready.split() if word.startswith("http://"))
        http = await stack.enter_async_context(http_client(url))
        await until_async(lambda: sees(http, "a", "b"), "both workers are seen")
        yield workers, frontend, http


async def sees(http, *names):
    models = (await http.get("/health")).json()["models"]
    found = sorted(one["name"] for model in models.values() for one in model["instances"])
    return found == sorted(names)


class Load:
    """Requests one after the other, in four lanes: when each began, its status, and who answered it."""

    def __init__(self, http):
        self._http = http
        self.done = []

    async def lane(self):
        while True:
            begun = time.monotonic()
            answer = await self._http.post("/v1/chat/completions", json=chat_body("hello", max_tokens=4))
            self.done.append((begun, answer.status_code, answer.headers.get("x-triptych-plan", "")))

    @contextlib.asynccontextmanager
    async def running(self):
        lanes = [asyncio.create_task(self.lane()) for _ in range(4)]
        try:
            yield self
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)


async def test_requests_flow_while_nats_is_away_and_all_register_again(nats, tmp_path):
    async with deployed(nats, tmp_path) as (workers, frontend, http), Load(http).running() as load:
        nats.stop()
        gone = time.monotonic()
        await asyncio.sleep(AWAY_S)
        assert await sees(http, "a", "b")
        nats.start()
        for worker in workers:
            await until(lambda log=worker.log: "NATS is back" in log.read_text(), "it registered again")
        await until(lambda: "NATS is back" in frontend.log.read_text(), "the frontend watches again")
        await until_async(lambda: is_certain(http), "the grace is over: nobody is there by mercy alone", SOON_S)
        assert await sees(http, "a", "b")
        statuses = [status for begun, status, _ in load.done if begun > gone]
        assert len(statuses) > 100
        assert set(statuses) == {200}, "not one request noticed"
        assert "is gone" not in frontend.log.read_text()
        async with child(
            *mock_worker("--instance-name", "c", "--transfer", "inproc", "--plane", nats.url), run_dir=tmp_path
        ):
            await until_async(lambda: sees(http, "a", "b", "c"), "who comes now is seen")


async def is_certain(http):
    """Whether the frontend knows who is alive: then it says that a model does not exist."""
    return (await http.post("/v1/chat/completions", json=chat_body("x", model="other"))).status_code == 404


async def test_a_killed_worker_gets_no_more_requests_once_its_lease_is_over(nats, tmp_path):
    async with deployed(nats, tmp_path) as (workers, _, http), Load(http).running() as load:
        await until(lambda: any("@a" in plan for _, _, plan in load.done), "a answers")
        workers[0].signal(signal.SIGKILL)
        await until_async(lambda: sees(http, "b"), "it is gone")
        count = len(load.done)
        await until(lambda: len(load.done) > count + 50, "requests go on")
        assert {(status, plan) for _, status, plan in load.done[count + 4 :]} == {(200, "pd@b")}
