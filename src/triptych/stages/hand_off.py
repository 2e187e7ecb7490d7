"""How a prefill and a decode at two workers follow each other: one strategy for each ``HandOff``.

A strategy makes the calls until the KV cache is where it is decoded, and answers with a ``Start``. What comes of the
decode is passed on alike, whichever strategy began it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from triptych.contracts.answer import TokenDelta
from triptych.contracts.card import Instance
from triptych.contracts.errors import KvLost, TriptychError, WorkerLost, WorkerSilent
from triptych.contracts.kv_link import HandOff
from triptych.contracts.media import Medium
from triptych.contracts.request import GenerateRequest, KvHandle, KvRoom
from triptych.contracts.stages import PrefillAnswer
from triptych.stages.stream import StepFailed, Stream

BLAME_S = 1.0
"""How long a hand-over that failed waits for the other worker to tell why: its own error says more than that the KV
cache did not come."""
LATE_S = 0.1
"""How long the prefill's answer may follow the first tokens that were decoded with its KV cache."""


class Calling(Protocol):
    """The calls of one attempt, as a strategy needs them. Each raises StepFailed."""

    @property
    def request(self) -> GenerateRequest:
        """What is prefilled, with the media as the worker that prefills gets them."""
        ...

    @property
    def giver(self) -> Instance: ...

    @property
    def taker(self) -> Instance: ...

    async def prefill(self, request: GenerateRequest) -> PrefillAnswer: ...

    async def decode(self, request: GenerateRequest) -> Stream:
        """Begin a decode, which is left with the attempt."""
        ...


@dataclass
class Start:
    """What a hand-off came to."""

    deltas: list[TokenDelta]
    """Of the prefill, to be passed on; may be empty."""
    answer: PrefillAnswer | None
    """The prefill's; None where the decode began without one, or before it told its end."""
    stream: Stream | None = None
    """The decode under way; None: it has not begun."""
    first: list[TokenDelta] | None = None
    """The decode's first batch, if it was awaited."""
    kv: KvHandle | None = None
    """The cache for a decode that has not begun; None in place of both: the answer is over."""


async def prefill_first(calling: Calling) -> Start:
    """Await the prefill. Its token is passed on before the decode begins."""
    answer = await calling.prefill(calling.request)
    first = answer.delta
    if answer.kv is None and first.finish_reason is None:
        raise StepFailed(calling.giver, TriptychError("the prefill kept no KV cache, though its answer is not over"))
    if not first.token_ids and first.finish_reason is None:
        return Start([], answer, kv=answer.kv)
    return Start([first if first.finish_reason else replace(first, timing=None)], answer, kv=answer.kv)


async def rendezvous(calling: Calling) -> Start:
    """Call both at once, with a room of their own. Until the first tokens come, the failure of either cancels the
    other; afterwards the prefill has done its part, and its failure changes nothing."""
    assert calling.giver.kv_link is not None
    meeting = _Meeting(calling, KvRoom(bootstrap=calling.giver.kv_link.bootstrap, number=secrets.randbits(63)))
    try:
        async with asyncio.TaskGroup() as group:
            giving = group.create_task(meeting.give(), name=f"prefill at {calling.giver.name}")
            stream, deltas = await meeting.take(giving)
            await asyncio.wait([giving], timeout=LATE_S)
            giving.cancel()
    except BaseExceptionGroup as failures:
        raise _cause(failures) from None
    answer = None if giving.cancelled() else giving.result()
    return Start([], answer, stream, deltas)


class _Meeting:
    """One prefill and one decode in one room."""

    def __init__(self, calling: Calling, room: KvRoom) -> None:
        self._calling = calling
        self._room = room
        self._handed_over = False
        """The decode has said something, so it has the KV cache."""
        self._is_answered = False
        """The prefill has been answered."""
        self._missed = False
        """One of the two said that the KV cache did not come over."""

    async def give(self) -> PrefillAnswer | None:
        """Prefill; None where that fails only after the KV cache came over."""
        try:
            answer = await self._calling.prefill(replace(self._calling.request, give=self._room))
        except StepFailed as failure:
            if self._handed_over:
                return None
            await self._let_the_other_tell(failure, lambda: asyncio.sleep(BLAME_S))
            raise self._of_both(failure) from None
        self._is_answered = True
        return answer

    async def take(self, giving: asyncio.Task[PrefillAnswer | None]) -> tuple[Stream, list[TokenDelta]]:
        """Decode up to the first deltas."""
        try:
            stream = await self._calling.decode(replace(bare(self._calling.request), kv=self._room))
            deltas = await anext(stream, None)
            if deltas is None:
                raise StepFailed(self._calling.taker, WorkerLost("the worker ended its answer without a word"))
        except StepFailed as failure:
            await self._let_the_other_tell(failure, lambda: asyncio.wait([giving], timeout=BLAME_S))
            raise self._of_both(failure) from None
        self._handed_over = True
        stream.expect_at_once()
        return stream, deltas

    async def _let_the_other_tell(self, failure: StepFailed, wait: Callable[[], Awaitable[object]]) -> None:
        """Wait, if the KV cache was missed, for the other's own error, which cancels this wait."""
        if isinstance(failure.error, KvLost) and not self._missed:
            self._missed = True
            await wait()

    def _of_both(self, failure: StepFailed) -> StepFailed:
        """``failure``; if it is a silence, with the other one as well: either may have waited for the other in vain."""
        if isinstance(failure.error, WorkerSilent) and not self._is_answered:
            failure.pair = (self._calling.giver.id, self._calling.taker.id)
        return failure


def _cause(failures: BaseExceptionGroup) -> BaseException:
    """The failure that tells most: one of a worker, and rather not that the other one did not come."""
    steps = [failure for failure in failures.exceptions if isinstance(failure, StepFailed)]
    own = [failure for failure in steps if not isinstance(failure.error, KvLost)]
    return next(iter([*own, *steps]), failures)


def bare(request: GenerateRequest) -> GenerateRequest:
    """``request`` for a worker that is given the KV cache: it only must know of the media."""
    return replace(request, media=[_bare(medium) for medium in request.media])


def _bare(medium: Medium) -> Medium:
    return replace(medium, data=b"", embedding=None)


STRATEGIES: dict[HandOff, Callable[[Calling], Awaitable[Start]]] = {
    HandOff.PREFILL_FIRST: prefill_first,
    HandOff.RENDEZVOUS: rendezvous,
}
