"""What a worker does with grammars before its engine sees them, over a process that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from triptych.contracts.errors import BadRequest, DeadlineExceeded, Unavailable
from triptych.contracts.request import Guided
from triptych.engines.vllm.grammar import checker as module
from triptych.engines.vllm.grammar.checker import GrammarChecker
from triptych.engines.vllm.grammar.process import ProcessLost
from triptych.engines.vllm.grammar.wire import Setup, Verdict
from triptych.stages.request_state.rules import Failure, failure_of

SETUP = Setup(
    tokenizer="",
    any_whitespace=True,
    separators=None,
    timeout_s=1,
    max_step_s=1,
    memory_bytes=1,
    threads=1,
)
SOUND = Verdict(outcome="sound", step_s=0.1)


class FakeProcess:
    """Answers by ``verdicts``, else SOUND; "lost" ends it. Holds trials back while ``gate`` is closed."""

    def __init__(self, verdicts: dict[str, Verdict | str]) -> None:
        self.verdicts = verdicts
        self.tried: list[str] = []
        self.started = asyncio.Event()
        self.cancelled: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.alive = True
        self.closed = 0

    async def ready(self, setup: Setup) -> None: ...

    async def try_schema(self, schema: str) -> Verdict:
        self.tried.append(schema)
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(schema)
            raise
        verdict = self.verdicts.get(schema, SOUND)
        if isinstance(verdict, str):
            self.alive = False
            raise ProcessLost("it was killed")
        return verdict

    async def close(self) -> None:
        self.closed += 1


@asynccontextmanager
async def checker(
    *processes: FakeProcess, trials: int = 2, step_budget_s: float = 0.25, wait_s: float = 5.0
) -> AsyncIterator[GrammarChecker]:
    left = iter(processes)

    async def begin() -> FakeProcess:
        return next(left)

    one = GrammarChecker(trials=trials, step_budget_s=step_budget_s, begin=begin, wait_s=wait_s)
    await one.begin()
    await one.ready(SETUP)
    try:
        yield one
    finally:
        await one.close()
        await one.close()


def schema(text: str) -> Guided:
    return Guided("json_schema", text)


async def test_equal_contents_are_tried_once() -> None:
    process = FakeProcess({})
    async with checker(process) as one:
        await asyncio.gather(*(one.check(schema("a")) for _ in range(5)))
        await one.check(schema("a"))
        await one.check(Guided("json_object"))
        assert await one.check(None) is None
        assert process.tried == ["a", '{"type": "object"}']
        assert (one.counts.accepted, one.counts.cache_hits) == (2, 1)


@pytest.mark.parametrize(("outcome", "code"), [("invalid", "invalid_schema"), ("too_costly", "schema_too_costly")])
async def test_a_refusal_is_the_clients_fault_and_remembered(outcome: str, code: str) -> None:
    process = FakeProcess({"a": Verdict(outcome=outcome, reason="use fewer")})  # type: ignore[arg-type]
    async with checker(process) as one:
        for _ in range(2):
            with pytest.raises(BadRequest) as refused:
                await one.check(schema("a"))
            assert (refused.value.code, refused.value.param) == (code, "response_format.json_schema.schema")
            assert "use fewer" in refused.value.message
        assert process.tried == ["a"]


async def test_what_took_too_long_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict by the clock may be the machine's fault."""
    process = FakeProcess({"a": Verdict(outcome="too_costly", timed_out=True)})
    async with checker(process) as one:
        for _ in range(2):
            with pytest.raises(BadRequest):
                await one.check(schema("a"))
        assert process.tried == ["a"]
        monkeypatch.setattr(module.time, "monotonic", lambda: 1e12)
        process.verdicts.clear()
        await one.check(schema("a"))


async def test_a_lost_process_is_replaced_and_asked_once_more() -> None:
    first, second = FakeProcess({"a": "lost"}), FakeProcess({})
    async with checker(first, second) as one:
        await one.check(schema("a"))
        assert (first.tried, second.tried, first.closed) == (["a"], ["a"], 1)


async def test_a_medium_lost_twice_is_answered_503_and_not_held_against_it() -> None:
    first, second, third = FakeProcess({"a": "lost"}), FakeProcess({"a": "lost"}), FakeProcess({})
    async with checker(first, second, third) as one:
        with pytest.raises(Unavailable):
            await one.check(schema("a"))
        await one.check(schema("a"))
        assert third.tried == ["a"]


async def test_a_trial_that_the_machine_ended_is_made_once_more_then_503() -> None:
    process = FakeProcess({"a": Verdict(outcome="killed")})
    async with checker(process) as one:
        with pytest.raises(Unavailable) as refused:
            await one.check(schema("a"))
        assert refused.value.code == "grammars_busy"
        assert process.tried == ["a", "a"]


async def test_a_trial_that_the_machine_gave_no_time_is_answered_504_at_once_and_not_remembered() -> None:
    process = FakeProcess({"a": Verdict(outcome="killed", timed_out=True)})
    async with checker(process) as one:
        with pytest.raises(DeadlineExceeded, match="too busy") as refused:
            await one.check(schema("a"))
        assert (refused.value.code, process.tried) == ("grammar_timeout", ["a"])
        assert failure_of(refused.value) is Failure.FAULT  # no other worker spends as long on it
        process.verdicts.clear()
        await one.check(schema("a"))


async def test_trials_are_bounded_in_number_and_waiting_in_time() -> None:
    process = FakeProcess({})
    process.gate.clear()
    async with checker(process, trials=1, wait_s=0.05) as one:
        first = asyncio.create_task(one.check(schema("a")))
        await process.started.wait()
        with pytest.raises(Unavailable, match="being compiled"):
            await one.check(schema("b"))
        process.gate.set()
        await first
        await one.check(schema("b"))
        assert process.tried == ["a", "b"]


async def test_a_client_that_leaves_ends_its_trial_and_frees_the_place() -> None:
    process = FakeProcess({})
    process.gate.clear()
    async with checker(process, trials=1) as one:
        leaving = asyncio.create_task(one.check(schema("a")))
        await process.started.wait()
        leaving.cancel()
        await asyncio.wait([leaving])
        process.gate.set()
        await one.check(schema("b"))
        assert process.cancelled == ["a"]


async def test_running_grammars_share_the_time_between_tokens() -> None:
    async with checker(FakeProcess({}), wait_s=0.05) as one:
        async with one.admitted(schema("a")), one.admitted(schema("a")):
            with pytest.raises(Unavailable, match="time between tokens"):
                async with one.admitted(schema("a")):
                    raise AssertionError("three times 0.1 s are more than 0.25 s")
            async with one.admitted(None):
                pass  # without a grammar there is nothing to wait for
            assert [sample.value for sample in one.metrics()][-1] == pytest.approx(0.2)
        async with one.admitted(schema("a")):
            pass
