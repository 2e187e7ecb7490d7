"""How many generations run at once: a bound, and a bounded wait for it in which no kind of request starves another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Literal

from triptych.contracts.errors import TooManyRequests, Unavailable
from triptych.contracts.stages import Sample

Lane = Literal["text", "media"]

RETRY_AFTER_S = 1.0


class Admission:
    """Lets ``most`` in at once (0: all), the others in order of their coming. For one event loop.

    Requests with media wait in a line of their own, and the two lines take turns: heavy ones cannot hold up texts for
    longer than one of them takes, nor texts them.
    """

    def __init__(self, most: int, most_waiting: int, wait_s: float) -> None:
        self._most = most
        self._most_waiting = most_waiting
        self._wait_s = wait_s
        self._running = 0
        self._lines: dict[Lane, deque[asyncio.Future[None]]] = {"text": deque(), "media": deque()}

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def samples(self) -> Iterable[Sample]:
        """Metrics."""
        text = "Generations that wait for their turn (--max-running)."
        yield Sample("triptych_requests_waiting", "gauge", text, self.waiting)

    @asynccontextmanager
    async def admitted(self, lane: Lane) -> AsyncIterator[None]:
        """One of those who run, for the block.

        Raises TooManyRequests where too many wait already, and Unavailable after ``wait_s``. Cancelling leaves
        the line.
        """
        if not self._most:
            yield
            return
        if self._running >= self._most or self.waiting:
            await self._turn(lane)
        else:
            self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._let_in()

    async def _turn(self, lane: Lane) -> None:
        if self.waiting >= self._most_waiting:
            raise TooManyRequests(
                f"{self._most} requests run and {self._most_waiting} wait, the limits (--max-running, --max-waiting)",
                code="queue_full",
                retry_after_s=RETRY_AFTER_S,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = self._lines[lane]
        line.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # let in at the moment of leaving
                self._running -= 1
                self._let_in()
            else:
                with suppress(ValueError):
                    line.remove(turn)
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    f"no turn came within {self._wait_s:g} s (--max-wait-s); try again",
                    code="queue_timeout",
                    retry_after_s=RETRY_AFTER_S,
                ) from None
            raise

    def _let_in(self) -> None:
        """Whoever is next, the lines by turns."""
        while self._running < self._most and self.waiting:
            lane = next(name for name, line in self._lines.items() if line)
            turn = self._lines[lane].popleft()
            if not turn.done():  # else it was cancelled just now
                turn.set_result(None)
                self._lines[lane] = self._lines.pop(lane)  # the other line is looked at first next time
                self._running += 1
