"""What workers say of their KV caches reaches the frontend, and decides where requests go."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from support.carriers import NAMES, Carrier, carrier_of
from support.deployment import chat_body, deployment
from support.loops import until
from triptych.config.router import RouterConfig
from triptych.contracts.kv_events import KvChange, Level, packed
from triptych.engines.mock.engine import MockEngine
from triptych.frontend.fleet.follow import Follower
from triptych.kv.log import KvLog
from triptych.planes.events.request import RequestSource
from triptych.planes.request.tcp_client import TcpRequestClient
from triptych.router.routing import Routing

BLOCK = 16


class NumberedUpdate:
    """What mock engines say that they hold: set by tests, by the engine's own log."""

    def __init__(self) -> None:
        self.held: dict[KvLog, list[KvChange]] = {}

    def log_of(self, engine: MockEngine) -> KvLog:
        known: Any = engine.__dict__
        if "told" not in known:
            log = known["told"] = KvLog(lambda: self.held[log])
            self.held[log] = []
        return known["told"]

    def store(self, engine: MockEngine, hashes: list[int]) -> None:
        log, change = self.log_of(engine), KvChange(Level.DEVICE, True, packed(hashes))
        self.held[log].append(change)
        log.publish([change])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> NumberedUpdate:
    told = NumberedUpdate()
    start = MockEngine.start

    async def starting(engine: MockEngine, transfer: Any) -> Any:
        card = await start(engine, transfer)
        engine.abilities = dataclasses.replace(engine.abilities, kv_reports=told.log_of(engine))
        return card

    monkeypatch.setattr(MockEngine, "start", starting)
    return told


def prompts_of(deployed: Any) -> list[Any]:
    """Prompts that the frontend routes from now on, as it sees them."""
    seen: list[Any] = []
    choose = deployed.dispatcher.routing.choose

    def note(stages: str, pool: Any, prompt: Any) -> Any:
        seen.append(prompt)
        return choose(stages, pool, prompt)

    deployed.dispatcher.routing.choose = note
    return seen


async def answered_by(deployed: Any, text: str) -> str:
    answer = await deployed.http.post("/v1/chat/completions", json=chat_body(text))
    assert answer.status_code == 200, answer.text
    return answer.headers["x-triptych-plan"].split("@")[1]


@pytest.fixture(params=NAMES)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    return carrier_of(request)


async def test_a_request_goes_where_its_prefix_is_and_elsewhere_when_that_worker_dies(
    told: NumberedUpdate, carrier: Carrier
) -> None:
    async with deployment(spans=["pd", "pd", "pd"], frontend={"plan_header": True}, carrier=carrier) as d:
        seen = prompts_of(d)
        text = "say something long enough for some blocks " * 8
        await answered_by(d, text)
        routing, prompt = d.dispatcher.routing, seen[-1]
        last = d.workers[2]
        told.store(last.engine, prompt.hashes(BLOCK))
        await until(lambda: routing.held_tokens(last.instance, prompt), "the frontend has heard of it")
        assert [await answered_by(d, text) for _ in range(4)] == ["pd-2"] * 4
        last.task.cancel()
        await until(lambda: not routing.held_tokens(last.instance, prompt), "it is forgotten")
        assert await answered_by(d, text) in ("pd-0", "pd-1")


async def test_a_frontend_that_comes_late_hears_all_that_is_held(told: NumberedUpdate) -> None:
    async with deployment(spans=["pd", "pd"], frontend={"plan_header": True}) as d:
        seen = prompts_of(d)
        await answered_by(d, "once upon a time " * 10)
        prompt, worker = seen[-1], d.workers[1]
        told.store(worker.engine, prompt.hashes(BLOCK)[:2])
        told.store(worker.engine, prompt.hashes(BLOCK)[2:])
        early = d.dispatcher.routing
        whole = len(prompt) // BLOCK * BLOCK
        await until(lambda: early.held_tokens(worker.instance, prompt) == whole, "the first frontend knows")
        client, late = TcpRequestClient(d.token), Routing(RouterConfig())
        follower = Follower(RequestSource(client), late)
        follower.update(one.instance for one in d.workers)
        await until(lambda: late.held_tokens(worker.instance, prompt) == whole, "the second one knows as much")
        worker.break_connections()
        told.store(worker.engine, [1, 2, 3])
        await until(lambda: not late.held_tokens(worker.instance, prompt), "a broken connection is noticed")
        await until(lambda: late.held_tokens(worker.instance, prompt) == whole, "and made again")
        await follower.close()
        await client.close()


@pytest.mark.parametrize("policy", ["round-robin", "random", "least-loaded", "power-of-two", "kv"])
async def test_every_policy_serves(policy: str) -> None:
    async with deployment(spans=["pd", "pd"], frontend={"plan_header": True, "router_policy": policy}) as d:
        went = [await answered_by(d, f"hello {number}") for number in range(12)]
        if policy == "round-robin":
            assert went == ["pd-1", "pd-0"] * 6
        assert set(went) <= {"pd-0", "pd-1"}


async def test_a_request_may_name_its_worker() -> None:
    async with deployment(spans=["pd", "pd"], frontend={"plan_header": True, "router_policy": "direct"}) as d:
        for name in ("pd-1", "pd-0", "pd-1"):
            answer = await d.http.post(
                "/v1/chat/completions", json=chat_body("hello"), headers={"x-triptych-instance": name}
            )
            assert answer.headers["x-triptych-plan"] == f"pd@{name}"
        answer = await d.chat("hello")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "x-triptych-instance"
        assert answer.json()["error"]["code"] == "instance_unknown"


async def test_a_session_stays_at_its_worker() -> None:
    async with deployment(spans=["pd"] * 4, frontend={"plan_header": True, "router_sessions": True}) as d:
        went = {}
        for session in ("ann", "bob", "cid", "dan"):
            by_field = [await d.chat(f"hello {number}", user=session) for number in range(3)]
            by_field.append(await d.chat("hello", user="another", session_id=session))
            body, named = chat_body("again"), {"x-session-id": session}
            by_header = await d.http.post("/v1/chat/completions", json=body, headers=named)
            went[session] = {one.headers["x-triptych-plan"] for one in (*by_field, by_header)}
        assert all(len(one) == 1 for one in went.values()), went
        assert len(set.union(*went.values())) > 1
