"""TLS on the request plane, end to end: real processes, the mock engine, a chat request over HTTP."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest
from test_up import GRAPH, ask, triptych

from support.certificates import Authority, Files
from support.deployment import http_client
from support.loops import until, until_async
from support.processes import Child, child, mock_worker


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def own(authority: Authority) -> Files:
    return authority.issue()


def test_up_gives_every_process_the_same_certificate(tmp_path: Path, authority: Authority, own: Files) -> None:
    words = ("--tls-cert", own.cert, "--tls-key", own.key, "--tls-ca", authority.ca)
    with triptych(tmp_path, "up", GRAPH, "--port", "0", *words) as up:
        summary = up.read_until("Ctrl-C stops")
        url = next(word for word in summary.split() if word.startswith("http://"))
        assert "red circle" in ask(url, "demo")


async def test_a_frontend_speaks_only_with_workers_that_it_can_trust(
    tmp_path: Path, authority: Authority, own: Files
) -> None:
    """Of a worker with TLS and one without, each kind of frontend sees one, and names the other."""
    worker = mock_worker("--instance-name", "secure", "--tls-cert", own.cert, "--tls-key", own.key)
    frontend = ("frontend", "--port", "0", "--plan-header")

    def started(*words: str) -> AbstractAsyncContextManager[Child]:
        return child(*words, run_dir=tmp_path, env={"TRIPTYCH_TOKEN": "secret"})

    async def main() -> None:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            workers = (started(*worker), started(*mock_worker("--instance-name", "plain")))
            await asyncio.gather(*map(stack.enter_async_context, workers))
            for words, sees, names in (
                (("--tls-ca", authority.ca), "secure", "leaving out worker plain."),
                ((), "plain", "leaving out worker secure."),
            ):
                group.create_task(check((*frontend, *words), sees, names))

    async def check(words: tuple[str, ...], sees: str, names: str) -> None:
        async with started(*words) as one, http_client(one.ready.split()[-1]) as http:

            async def ready() -> bool:
                return (await http.get("/ready")).status_code == 200

            await until_async(ready, "it is ready")
            body = {"model": "demo", "messages": [{"role": "user", "content": "red circle"}]}
            for _ in range(3):
                answer = await http.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                assert sees in answer.headers["x-triptych-plan"]
            await until(lambda: one.log.read_text().count(names) == 1, "it says whom it leaves out, once")

    await main()
