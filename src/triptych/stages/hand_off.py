"""Sequences a prefill and a decode at two workers, by one strategy for each ``HandOff``.

A strategy makes the calls until the worker that decodes has the KV cache, and returns a ``Start``. The deltas of the
decode are passed on in the same way for all strategies.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from triptych.aio.tasks import check_cancelled
from triptych.contracts.answer import TokenDelta
from triptych.contracts.card import Instance
from triptych.contracts.errors import KvLost, TriptychError, WorkerLost, WorkerSilent
from triptych.contracts.kv_link import HandOff
from triptych.contracts.media import Medium
from triptych.contracts.request import GenerateRequest, KvHandle, KvRoom
from triptych.contracts.stages import PrefillAnswer
from triptych.stages.stream import StepFailed, Stream

BLAME_S = 1.0
"""The time to wait for the other worker's own error, which tells the reason, after a KV cache was not transferred."""
LATE_S = 0.1
"""The time to wait for the prefill's answer after the first tokens were decoded with its KV cache."""


class Calling(Protocol):
    """Makes the calls of one attempt for a strategy. Each call raises StepFailed."""

    @property
    def request(self) -> GenerateRequest:
        """The request to prefill, with its media as the worker that prefills gets them."""
        ...

    @property
    def giver(self) -> Instance: ...

    @property
    def taker(self) -> Instance: ...

    async def prefill(self, request: GenerateRequest) -> PrefillAnswer: ...

    async def decode(self, request: GenerateRequest) -> Stream:
        """Begins a decode. The attempt ends it."""
        ...


@dataclass
class Start:
    """The state of an answer when a strategy is done."""

    deltas: list[TokenDelta]
    """Deltas of the prefill that are passed on next; may be empty."""
    answer: PrefillAnswer | None
    """The answer of the prefill. None if there was no prefill, or if it did not tell its end in time."""
    stream: Stream | None = None
    """The decode, if it has begun."""
    first: list[TokenDelta] | None = None
    """The first batch of the decode, if it was awaited."""
    kv: KvHandle | None = None
    """The KV cache for a decode that has not begun. If there is neither this nor a stream, the answer is over."""


async def prefill_first(calling: Calling) -> Start:
    """Awaits the prefill. Its token is passed on before the decode begins."""
    answer = await calling.prefill(calling.request)
    first = answer.delta
    if answer.kv is None and first.finish_reason is None:
        raise StepFailed(calling.giver, TriptychError("the prefill kept no KV cache, though its answer is not over"))
    if not first.token_ids and first.finish_reason is None:
        return Start([], answer, kv=answer.kv)
    return Start([first if first.finish_reason else replace(first, timing=None)], answer, kv=answer.kv)


async def rendezvous(calling: Calling) -> Start:
    """Calls both workers at once, with a room of their own.

    Until the first tokens come, the failure of either call cancels the other. Afterwards the prefill has done its part,
    and its failure changes nothing.
    """
    assert calling.giver.kv_link is not None
    meeting = _Meeting(calling, KvRoom(bootstrap=calling.giver.kv_link.bootstrap, number=secrets.randbits(63)))
    try:
        async with asyncio.TaskGroup() as group:
            giving = group.create_task(meeting.give(), name=f"prefill at {calling.giver.name}")
            stream, deltas = await meeting.take(giving)
            await asyncio.wait([giving], timeout=LATE_S)
            giving.cancel()
    except BaseExceptionGroup as failures:
        check_cancelled()
        raise _cause(failures) from None
    answer = None if giving.cancelled() else giving.result()
    return Start([], answer, stream, deltas)


class _Meeting:
    """Calls one prefill and one decode that meet in one room."""

    def __init__(self, calling: Calling, room: KvRoom) -> None:
        self._calling = calling
        self._room = room
        self._handed_over = asyncio.Event()
        """Set when the decode has sent something, so that it must have the KV cache."""
        self._is_answered = False
        """Whether the prefill has been answered."""
        self._missed = False
        """Whether one of the two workers reported that the KV cache was not transferred."""

    async def give(self) -> PrefillAnswer | None:
        """Prefills. Returns None if that fails only after the KV cache was transferred."""
        try:
            answer = await self._calling.prefill(replace(self._calling.request, give=self._room))
        except StepFailed as failure:
            if self._handed_over.is_set():
                return None
            await self._let_the_other_tell(failure, lambda: asyncio.sleep(BLAME_S))
            if self._handed_over.is_set():  # meanwhile
                return None
            raise self._of_both(failure) from None
        self._is_answered = True
        return answer

    async def take(self, giving: asyncio.Task[PrefillAnswer | None]) -> tuple[Stream, list[TokenDelta]]:
        """Decodes up to the first deltas."""
        try:
            stream = await self._calling.decode(replace(bare(self._calling.request), kv=self._room))
            deltas = await anext(stream, None)
            if deltas is None:
                raise StepFailed(self._calling.taker, WorkerLost("the worker ended its answer without a word"))
        except StepFailed as failure:
            await self._let_the_other_tell(failure, lambda: asyncio.wait([giving], timeout=BLAME_S))
            raise self._of_both(failure) from None
        self._handed_over.set()
        stream.expect_at_once()
        return stream, deltas

    async def _let_the_other_tell(self, failure: StepFailed, wait: Callable[[], Awaitable[object]]) -> None:
        """Waits for the other worker's own error, which cancels this wait, if the KV cache was not transferred."""
        if isinstance(failure.error, KvLost) and not self._missed:
            self._missed = True
            await wait()

    def _of_both(self, failure: StepFailed) -> StepFailed:
        """Names both workers in the failure if it is a silence: either may have waited for the other in vain."""
        if isinstance(failure.error, WorkerSilent) and not self._is_answered:
            failure.pair = (self._calling.giver.id, self._calling.taker.id)
        return failure


def _cause(failures: BaseExceptionGroup) -> BaseException:
    """Returns the most useful failure: a worker's own error, rather than that the KV cache was not transferred."""
    steps = [failure for failure in failures.exceptions if isinstance(failure, StepFailed)]
    own = [failure for failure in steps if not isinstance(failure.error, KvLost)]
    return next(iter([*own, *steps]), failures)


def bare(request: GenerateRequest) -> GenerateRequest:
    """Returns ``request`` without the media's bytes, for a worker that gets the KV cache: it must only know of them."""
    return replace(request, media=[_bare(medium) for medium in request.media])


def _bare(medium: Medium) -> Medium:
    return replace(medium, data=b"", embedding=None)


STRATEGIES: dict[HandOff, Callable[[Calling], Awaitable[Start]]] = {
    HandOff.PREFILL_FIRST: prefill_first,
    HandOff.RENDEZVOUS: rendezvous,
}
