"""Runs the check: every case cold, then warm, then all at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import or_all
from triptych.verify.ask import AskFailed, Deployment, Reply
from triptych.verify.cases import Case
from triptych.verify.compare import Difference, compare
from triptych.verify.reference import Expected

Outcome = Literal["ok", "differs", "failed"]
Questions = Sequence[tuple[Case, Expected]]


class CheckedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request with its outcome: an answer, with its difference if there is one, or an error."""

    streamed: bool
    reply: Reply | None = None
    difference: Difference | None = None
    error: str | None = None

    @property
    def outcome(self) -> Outcome:
        return "failed" if self.reply is None else "differs" if self.difference else "ok"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One case in one phase."""

    case: str
    phase: str
    requests: tuple[CheckedRequest, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of the case's requests."""
        found = {request.outcome for request in self.requests}
        return "failed" if "failed" in found else "differs" if "differs" in found else "ok"


OnResult = Callable[[Result], None]
"""Is called with each result as soon as it is known."""


async def model_to_ask(deployment: Deployment, url: str, wanted: str | None) -> str:
    """Returns ``wanted`` if it is served, else the only served model. Raises ConfigError that lists the models."""
    try:
        served = await deployment.models()
    except AskFailed as error:
        raise ConfigError(f"--url {url}: {error}") from error
    if wanted is None and len(served) == 1:
        return served[0]
    if wanted in served:
        return str(wanted)
    if wanted is None:
        names = ", ".join(served)
        several = f"serves several models, choose one with --model: {names}"
        raise ConfigError(f"{url} {several if served else 'serves no model now'}")
    raise ConfigError(f"{url} does not serve {wanted}{or_all(wanted, served)}")


class Check:
    """Asks ``deployment`` for answers of ``model`` with at most ``max_tokens``."""

    def __init__(self, deployment: Deployment, model: str, max_tokens: int, concurrency: int) -> None:
        self._deployment, self._model = deployment, model
        self._max_tokens, self._concurrency = max_tokens, concurrency

    async def run(self, questions: Questions, on_result: OnResult) -> list[Result]:
        """Asks every question cold (whole), warm (again, streamed) and at once (both, ``concurrency`` in flight).

        A wrong answer or a failed request is a result, and does not end the check.
        """
        results: list[Result] = []

        def note(case: Case, phase: str, requests: Sequence[CheckedRequest]) -> None:
            results.append(Result(case=case.name, phase=phase, requests=tuple(requests)))
            on_result(results[-1])

        for phase, stream in (("cold", False), ("warm", True)):
            for case, expected in questions:
                note(case, phase, [await self._ask(case, expected, stream=stream)])
        for (case, _), requests in zip(questions, await self._at_once(questions), strict=True):
            note(case, "at once", requests)
        return results

    async def _at_once(self, questions: Questions) -> list[list[CheckedRequest]]:
        """Asks several copies of each question, in turns: enough to fill ``concurrency``."""
        gate = asyncio.Semaphore(self._concurrency)
        copies = max(2, math.ceil(self._concurrency / len(questions)))

        async def gated(case: Case, expected: Expected, stream: bool) -> CheckedRequest:
            async with gate:
                return await self._ask(case, expected, stream=stream)

        async with asyncio.TaskGroup() as group:
            rounds = [
                [
                    group.create_task(gated(case, expected, (copy + place) % 2 == 0), name=f"{case.name} {copy}")
                    for place, (case, expected) in enumerate(questions)
                ]
                for copy in range(copies)
            ]
        return [[task.result() for task in tasks] for tasks in zip(*rounds, strict=True)]

    async def _ask(self, case: Case, expected: Expected, *, stream: bool) -> CheckedRequest:
        try:
            reply = await self._deployment.ask(self._model, case.api_messages, self._max_tokens, stream=stream)
        except AskFailed as error:
            return CheckedRequest(streamed=stream, error=str(error))
        return CheckedRequest(streamed=stream, reply=reply, difference=compare(expected, reply))
