"""Three frontends in processes of their own agree upon what is in quarantine, by files and over NATS."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from support.deployment import chat_body, http_client
from support.loops import until, until_async
from support.nats_server import nats_server
from support.processes import child, mock_worker

POISON, POISON_TOKEN = "Ω", 138
"""Text, and a token that is in it and in no other prompt here."""
SECRET = "a-key-of-some-client"


@contextlib.asynccontextmanager
async def frontend(folder, *plane):
    words = ("--port", "0", "--resume-timeout-s", "0.3", *plane)
    async with child("frontend", *words, run_dir=folder, env={"TRIPTYCH_API_KEY": SECRET}) as process:
        url = next(word for word in process.ready.split() if word.startswith("http://"))
        async with http_client(url, auth=_bearer) as http:
            http.log = process.log
            await until_async(lambda: sees(http), "it sees workers")
            yield http


def _bearer(request):
    request.headers["authorization"] = f"Bearer {SECRET}"
    return request


async def sees(http):
    return (await http.get("/ready")).status_code == 200


async def ask(http, content):
    answer = await http.post("/v1/chat/completions", json=chat_body(content, max_tokens=4))
    code = answer.json()["error"]["code"] if answer.status_code != 200 else ""
    return answer.status_code, code


async def metric(http, name):
    lines = (await http.get("/metrics")).text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"triptych_{name} ")), None)


REFUSED = (422, "request_quarantined")


@contextlib.asynccontextmanager
async def fleet(folder, *plane):
    """Three frontends over three workers that crash at poison."""
    engine = ("--poison-token", f"{POISON_TOKEN}")
    async with contextlib.AsyncExitStack() as stack:
        workers = [child(*mock_worker("--transfer", "inproc", *plane, engine=engine), run_dir=folder) for _ in range(3)]
        await asyncio.gather(*(stack.enter_async_context(worker) for worker in workers))
        entered = [stack.enter_async_context(frontend(folder, *plane)) for _ in range(3)]
        yield await asyncio.gather(*entered)


async def agree(https):
    """The first puts poison in quarantine, and all refuse it."""
    assert await ask(https[0], POISON) == REFUSED
    for http in https[1:]:
        await until_async(lambda http=http: is_told(http), "it is told", 2.0)
        assert await ask(http, POISON) == REFUSED
    for http in https:
        assert await metric(http, "workers_lost_total") == 2, "no frontend has tried it at a third"


async def is_told(http):
    return await metric(http, "requests_quarantined") == 1


@pytest.mark.event_loop(limit_s=55)
async def test_three_frontends_agree_by_files(tmp_path):
    async with fleet(tmp_path) as https:
        await agree(https)
        files = [file for file in tmp_path.glob("default/state/**/*") if file.is_file()]
        assert files
        told = "\n".join(file.read_text(errors="replace") for file in files)
        assert SECRET not in told
        assert POISON not in told


@pytest.mark.event_loop(limit_s=55)
async def test_three_frontends_agree_over_nats_and_go_on_without_it(tmp_path):
    with nats_server(tmp_path) as server:
        plane = ("--plane", server.url)
        async with fleet(tmp_path, *plane) as https:
            await agree(https)
            async with frontend(tmp_path, *plane) as late:
                assert await ask(late, POISON) == REFUSED, "a frontend that starts later knows"
                assert await ask(late, "hello") == (200, "")
            server.stop()
            for http in https:
                await until_async(lambda http=http: is_away(http), "its metric says so")
                await until(lambda http=http: "cannot read shared state" in http.log.read_text(), "and its log")
                assert await ask(http, "hello") == (200, "")
                assert await ask(http, POISON) == REFUSED
            server.start()
            for http in https:
                await until_async(lambda http=http: is_back(http), "it is back")
            async with frontend(tmp_path, *plane) as late:
                assert await ask(late, POISON) == REFUSED, "what the server has lost is told again"


async def is_away(http):
    return await metric(http, "shared_state_available") == 0


async def is_back(http):
    return await metric(http, "shared_state_available") == 1
