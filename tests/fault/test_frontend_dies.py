"""Two frontends over the same workers, one of which is killed: the other knows what it knew."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from support.deployment import chat_body, http_client
from support.loops import until_async
from support.processes import child, mock_worker

TEXTS = [f"{name} was kept where everybody knew that it was. " * 20 for name in ("bread", "water", "salt", "honey")]
ORDER = (0, 2, 2, 1, 3, 3, 0, 1)
"""In which they are asked for again: not one that turns would give."""
WAITING = 4


@contextlib.asynccontextmanager
async def frontend(folder):
    async with child("frontend", "--port", "0", "--plan-header", run_dir=folder) as process:
        url = next(word for word in process.ready.split() if word.startswith("http://"))
        async with http_client(url) as http:
            yield process, http


async def asked(http, text):
    """The plan that answered."""
    answer = await http.post("/v1/chat/completions", json=chat_body(text, max_tokens=2))
    assert answer.status_code == 200, answer.text
    return answer.headers["x-triptych-plan"]


async def is_ready(http):
    models = (await http.get("/health")).json()["models"]
    return len(models["demo"]["instances"]) == 2 if "demo" in models else False


async def test_the_index_of_the_other_one_answers_as_before(tmp_path):
    paced = ("--pace", "demo-cpu")
    async with (
        child(*mock_worker("--instance-name", "a", engine=paced), run_dir=tmp_path),
        child(*mock_worker("--instance-name", "b", engine=paced), run_dir=tmp_path),
        frontend(tmp_path) as (doomed, one),
        frontend(tmp_path) as (_, other),
    ):
        for http in (one, other):
            await until_async(lambda http=http: is_ready(http), "it sees both workers")
        first = [await asked(http, text) for text, http in zip(TEXTS, (one, other) * 2, strict=True)]
        assert len(set(first)) == 2, "new prompts go where the most room is"

        again = [first[number] for number in ORDER]

        async def held():
            return [await asked(other, TEXTS[number]) for number in ORDER]

        assert await held() == again, "those that the first one sent are known to the other, too"

        body = chat_body("wait", max_tokens=3000, ignore_eos=True)
        waiting = [asyncio.create_task(one.post("/v1/chat/completions", json=body)) for _ in range(WAITING)]
        await until_async(lambda: runs(other, WAITING), "the first one's requests are under way")
        doomed.signal(signal.SIGKILL)
        await doomed.ended()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await held() == again
        await until_async(lambda: runs(other, 0), "what the dead one had asked for has ended")
        assert await held() == again


async def runs(http, count):
    """Whether ``count`` requests run at the workers."""
    lines = (await http.get("/metrics")).text.splitlines()
    found = [line for line in lines if line.startswith("triptych_engine_requests_running")]
    assert found, [line for line in lines if line.startswith("triptych")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found) == count
