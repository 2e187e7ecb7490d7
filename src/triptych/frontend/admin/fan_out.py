"""Carries out an action at many instances at once, and undoes it if it fails at one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from triptych.contracts.admin import Action
from triptych.contracts.card import Instance
from triptych.contracts.errors import DeadlineExceeded, TriptychError, WorkerLost
from triptych.planes.request.base import RequestClient, peer_of

MAX_AT_ONCE = 64
"""The limit on instances that are called at the same time; others wait for them."""

Status = Literal["done", "failed", "undone", "undo_failed"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of the action at one instance."""

    instance: Instance
    status: Status
    result: msgspec.Struct | None = None
    error: TriptychError | None = None
    """The reason why the action failed, or could not be undone."""

    @property
    def failed(self) -> bool:
        return self.error is not None


class FanOut:
    """Calls instances over one request client. Serves one event loop."""

    def __init__(self, client: RequestClient) -> None:
        self._client = client

    async def run(
        self, action: Action[Any, Any], params: msgspec.Struct, instances: Sequence[Instance]
    ) -> list[Outcome]:
        """Carries out the action at ``instances``, and returns one outcome for each, in order. A failure stops no
        other.

        Each instance has ``action.limit_s`` from when it is called. After a cancel the action is done at some of them.
        """
        places = asyncio.Semaphore(MAX_AT_ONCE)

        async def call_within_limit(instance: Instance) -> Outcome:
            async with places:
                try:
                    return Outcome(instance, "done", await self._call(action, params, instance))
                except TriptychError as error:
                    return Outcome(instance, "failed", error=error)

        return list(await asyncio.gather(*map(call_within_limit, instances)))

    async def undo(self, undo: Action[Any, Any], params: msgspec.Struct, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Undoes an action at every instance: even one that failed may have done it."""
        undone = await self.run(undo, params, [outcome.instance for outcome in outcomes])
        return [_taken_back(outcome, back) for outcome, back in zip(outcomes, undone, strict=True)]

    async def _call(self, action: Action[Any, Any], params: msgspec.Struct, instance: Instance) -> msgspec.Struct:
        limit_s = action.limit_s(params)
        call = self._client.call(peer_of(instance), action.name, msgspec.msgpack.encode(params), silence_s=limit_s)
        try:
            async with asyncio.timeout(limit_s), call as answers:
                async for batch in answers:
                    result: msgspec.Struct = msgspec.msgpack.decode(batch[0], type=action.result)
                    return result
        except TimeoutError:
            raise DeadlineExceeded(
                f"the worker did not answer within {limit_s:g} s; it may still do it", code="worker_silent"
            ) from None
        except msgspec.MsgspecError as error:
            raise TriptychError(f"the worker's answer is of another version: {error}") from error
        raise WorkerLost("the worker ended its answer without a word")


def _taken_back(outcome: Outcome, back: Outcome) -> Outcome:
    if not back.failed:
        return outcome if outcome.failed else replace(outcome, status="undone", result=None)
    if outcome.failed:
        return outcome  # the action was probably never done there: its own failure tells more
    return replace(outcome, status="undo_failed", error=back.error)
