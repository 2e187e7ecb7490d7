"""Makes a call within a block that turns its errors into StepFailed, and reads the stream of deltas of a decode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from triptych.aio.pace import pace
from triptych.contracts.answer import TokenDelta
from triptych.contracts.card import Instance
from triptych.contracts.errors import TriptychError
from triptych.planes.request.base import Call
from triptych.stages.unanswered import Unanswered, Visit

TEXT_BYTES = 64
"""The limit on bytes of a delta of one token without log probabilities."""
LOGPROBS_COST = 64
"""Time to make JSON of log probabilities, as a multiple of the time to move as many bytes."""
MANY_DELTAS = 32
"""Deltas that arrive together when a worker is far ahead, above which their text counts at the event loop's pace."""
DELTA_BYTES = 4 << 10
"""Bytes that the text of such a delta counts as: they are moved in the same time (4 us)."""

_DELTA = msgspec.msgpack.Decoder(TokenDelta)


class StepFailed(Exception):
    """A call failed. Names the instance and the error."""

    def __init__(self, instance: Instance, error: TriptychError) -> None:
        super().__init__(f"{instance.name}: {error}")
        self.instance = instance
        self.error = error
        self.pair: tuple[str, str] | None = None
        """The ids of two workers of which either may have made the other silent (a rendezvous)."""


class Calling:
    """A call as a block. Counts it among the unanswered calls, and raises StepFailed for its errors."""

    __slots__ = ("_failed", "_target", "_unanswered", "call", "visit")

    def __init__(
        self,
        call: Call,
        target: Instance,
        unanswered: Unanswered,
        visit: Visit,
        failed: Callable[[Instance, TriptychError], StepFailed],
    ) -> None:
        self.call, self._target, self._unanswered, self.visit, self._failed = call, target, unanswered, visit, failed

    async def __aenter__(self) -> tuple[Call, Visit]:
        self._unanswered.begin(self.visit)
        try:
            await self.call.__aenter__()
        except BaseException as error:  # of a block that is not entered, __aexit__ is not called
            self._leave(error)
            raise
        return self.call, self.visit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.call.__aexit__(kind, error, trace)
        finally:
            self._leave(error)

    def answered(self) -> None:
        """Takes note that the worker has answered. If it is lost now, this call was not the cause."""
        self._unanswered.end(self.visit)

    def failure(self, error: TriptychError) -> StepFailed:
        return self._failed(self._target, error)

    def _leave(self, error: BaseException | None) -> None:
        try:
            if isinstance(error, TriptychError):
                raise self.failure(error) from error
        finally:
            self._unanswered.leave(self.visit, given_up=isinstance(error, asyncio.CancelledError | GeneratorExit))


class Stream:
    """Batches of deltas from one decode: whatever waits together. Leaving the block cancels the call at the worker."""

    __slots__ = ("_calling", "_decode", "_gathered", "_payloads", "_silence_s", "_visit")

    def __init__(self, calling: Calling, silence_s: float) -> None:
        """The worker may send nothing for at most ``silence_s`` once its stream has begun (``expect_at_once``)."""
        self._calling = calling
        self._silence_s = silence_s
        self._decode = _DELTA.decode
        self._gathered = 0
        """Number of deltas in the previous batch, if moving their text takes noticeable time."""

    async def __aenter__(self) -> Self:
        call, self._visit = await self._calling.__aenter__()
        self._payloads = aiter(call)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._calling.__aexit__(kind, error, trace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[TokenDelta]:
        if self._gathered and not pace().spend(DELTA_BYTES * self._gathered):
            await pace().wait_for_budget()
        try:
            batch = await self._payloads.__anext__()
        except TriptychError as error:
            raise self._calling.failure(error) from error
        if not self._visit.answered:
            self._calling.answered()
        if (size := sum(map(len, batch))) > TEXT_BYTES * len(batch):
            await pace().wait_for_budget()
            pace().spend(LOGPROBS_COST * size)
        self._gathered = len(batch) if len(batch) >= MANY_DELTAS else 0
        return [self._decode(payload) for payload in batch]

    def expect_at_once(self) -> None:
        """Applies the usual limit of silence from now on, because the prefill is over."""
        self._calling.call.expect_within(self._silence_s)
