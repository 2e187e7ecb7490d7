"""Adding an engine takes one folder (``tests/support/toy_engine``) and one line of the registry.

It hands KV caches over by rendezvous and has an administrative ability, and neither the frontend, the stages nor the
worker's runtime knows it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from support.deployment import deployment
from support.errors import check_error
from support.loops import until
from triptych.cli.main import main
from triptych.engines import registry
from triptych.engines.registry import EngineEntry

KEY = "operators"
SPLIT = ["p", "d"]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        registry.ENGINES, "toy", EngineEntry("support.toy_engine.args:FLAGS", "support.toy_engine.engine:ToyEngine")
    )


def deployed(**settings: Any) -> Any:
    frontend = {"plan_header": True, "admin_key": KEY}
    return deployment(engine="toy", frontend=frontend, **{"spans": SPLIT, "embedding_cache_bytes": 0, **settings})


async def said(d: Any, text: str, **fields: Any) -> tuple[str, dict[str, Any], str]:
    answer = await d.complete(text, max_tokens=50, **fields)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["choices"][0]["text"], body["usage"], answer.headers["x-triptych-plan"]


async def clear(d: Any, **fields: Any) -> Any:
    headers = {"authorization": f"Bearer {KEY}"}
    return await d.http.post("/admin/clear-caches", json={"model": "demo", **fields}, headers=headers)


async def test_it_is_served_split_and_whole_with_one_answer() -> None:
    async with deployed() as d:
        split = await said(d, "abc")
        assert split[0] == "cba"
        assert split[2] == "p@p-0 d@d-1", "both took part"
        await until(lambda: d.dispatcher.in_flight == 0, "no call is in flight")
        assert not d.workers[0].engine.rooms.rooms, "nobody waits in a room"
    async with deployed(spans=["epd"]) as d:
        whole = await said(d, "abc")
    assert split[:2] == whole[:2]


async def test_many_at_once_meet_each_their_own() -> None:
    async with deployed() as d:
        texts = [f"text {number}" for number in range(30)]
        answers = await asyncio.gather(*(said(d, text) for text in texts))
        assert [answer[0] for answer in answers] == [text[::-1] for text in texts]


async def test_its_administrative_ability_is_called_through_the_frontend() -> None:
    async with deployed() as d:
        cached = [(await said(d, "abc"))[1]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
        assert cached == [0, 3]
        answer = await clear(d)
        assert answer.status_code == 200, answer.text
        assert [(one["name"], one["status"], one["result"]["cleared"]) for one in answer.json()["instances"]] == [
            ("d-1", "done", ["prefix"]),
            ("p-0", "done", ["prefix"]),
        ]
        assert (await said(d, "abc"))[1]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_without_the_ability_the_frontend_says_so_by_itself() -> None:
    async with deployed(engine_args=("--remembers", "false")) as d:
        error = check_error(await clear(d), 501)
        assert (error["type"], error["code"]) == ("not_implemented_error", "ability_missing")
        assert "engine toy" in error["message"]
        instances = (await d.http.get("/health")).json()["models"]["demo"]["instances"]
        assert [one["abilities"] for one in instances] == [["prefilling", "generating"]] * 2


def test_commands_know_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    worker = ("worker", "--model", "demo", "--engine", "toy", "--span", "pd", "--")
    assert main([*worker, "--remember", "1"]) == 2
    assert "unknown engine flag --remember; did you mean --remembers?" in capsys.readouterr().err
    assert main([*worker, "--help"]) == 0
    assert "--remembers" in capsys.readouterr().out


def test_its_flags_are_known_without_importing_it() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from triptych.engines.registry import ENGINES, EngineEntry, known_flags\n"
        "ENGINES['toy'] = EngineEntry('support.toy_engine.args:FLAGS', 'support.toy_engine.engine:ToyEngine')\n"
        "print(known_flags('toy'), 'support.toy_engine.engine' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['--remembers'] False"
