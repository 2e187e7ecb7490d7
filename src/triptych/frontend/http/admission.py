"""Bounds how many generations run at once, and lets the others wait in turn so that no request starves another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

from triptych.aio.pace import PIECE_BYTES, Pace
from triptych.contracts.errors import BadRequest, TooManyRequests, Unavailable
from triptych.contracts.metric import Metric, gauge

Lane = Literal["text", "media"]

RETRY_AFTER_S = 1.0
MAX_AT_ONCE = 16
"""The most generations of a request that begin in one turn of the event loop. Larger requests begin theirs over many
turns, four a turn for all such requests together: planning and sending one takes half a millisecond."""


class RequestSlots:
    """The generations of one request. They get their slots one by one."""

    def __init__(self, admission: Admission, count: int) -> None:
        self.left = count
        """The number of generations that have no slot yet."""
        self.begun = False
        """True once one of them has had a slot. From then on the others wait without a time limit."""
        self.unused = 0
        """The number of granted slots that no generation has taken yet."""
        self.waiters: deque[asyncio.Future[None]] = deque()
        self._admission = admission
        self._is_large = count > MAX_AT_ONCE

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Holds a slot for one generation within the block. Raises Unavailable if the first does not come in time."""
        await self._admission.wait(self)
        try:
            if self._is_large:
                await self._admission.turn()
            yield
        finally:
            self._admission.give_back(1)

    def grant(self) -> None:
        """Gives a slot to one of its generations."""
        self.left -= 1
        self.begun = True
        if self.waiters:
            self.waiters.popleft().set_result(None)
        else:
            self.unused += 1


class Admission:
    """Lets at most ``max_running`` generations run at once (0: no bound). For one event loop.

    The others wait. Requests take turns, and each gets one slot a round, so that a request of many choices delays
    another by no more than one of its choices, and is not delayed more itself. Each slot belongs to one generation, so
    that no two requests can wait for each other. Requests with media have a queue of their own, and the two queues
    take turns.
    """

    def __init__(self, max_running: int, max_waiting: int, wait_s: float) -> None:
        self._max = max_running
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._running = 0
        self._pace = Pace()
        self.waiting = 0
        """The number of generations without a slot."""
        self._queues: dict[Lane, deque[RequestSlots]] = {"text": deque(), "media": deque()}

    def metrics(self) -> Iterable[Metric]:
        """Returns the metrics."""
        requests = sum(not slots.begun for queue in self._queues.values() for slots in queue)
        for name, text, value in (
            ("triptych_requests_waiting", "Requests of which no generation runs yet (--max-running).", requests),
            ("triptych_generations_waiting", "Generations that wait to run (--max-running).", self.waiting),
            ("triptych_generations_running", "Generations that run (--max-running).", self._running),
        ):
            yield gauge(name, text, value)

    @contextmanager
    def request(self, lane: Lane, count: int, param: str) -> Iterator[RequestSlots]:
        """Admits a request of ``count`` generations for the block; each of them then takes a ``slot``.

        Raises BadRequest, naming ``param``, if so many never fit, and TooManyRequests if they do not fit now.
        """
        slots = RequestSlots(self, count)
        if not self._max:
            slots.unused, slots.begun = count, True
            self._running += count
        else:
            self._check(count, param)
            self._queues[lane].append(slots)
            self.waiting += count
            self._let_in()
        try:
            yield slots
        finally:
            if slots in self._queues[lane]:
                self._queues[lane].remove(slots)
            self.waiting -= slots.left if self._max else 0
            self.give_back(slots.unused)

    def _check(self, count: int, param: str) -> None:
        free = 0 if self.waiting else self._max - self._running
        if count > self._max + self._max_waiting:
            raise BadRequest(
                f"{param}: the request is {count} generations (prompts x n), of which {self._max} run and "
                f"{self._max_waiting} wait at most (--max-running, --max-waiting)",
                param=param,
                code="too_many_generations",
            )
        if self.waiting + max(0, count - free) > self._max_waiting:
            raise TooManyRequests(
                f"{self._running} generations run and {self.waiting} wait; the limits are {self._max} and "
                f"{self._max_waiting} (--max-running, --max-waiting)",
                code="queue_full",
                retry_after_s=RETRY_AFTER_S,
            )

    async def wait(self, slots: RequestSlots) -> None:
        """Waits for a slot of ``slots``. Raises Unavailable if its first does not come within the time limit."""
        if slots.unused:
            slots.unused -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        slots.waiters.append(turn)
        try:
            await asyncio.wait([turn], timeout=None if slots.begun else self._wait_s)
            if not slots.begun:
                raise Unavailable(
                    f"no turn came within {self._wait_s:g} s (--max-wait-s); try again",
                    code="queue_timeout",
                    retry_after_s=RETRY_AFTER_S,
                )
            await asyncio.wait([turn])
        except BaseException:
            if turn.done():  # it was granted a slot while it was being cancelled
                slots.unused += 1
            elif turn in slots.waiters:
                slots.waiters.remove(turn)
            raise

    async def turn(self) -> None:
        """Waits for a turn of the event loop in which one more generation of a large request may begin."""
        await self._pace.wait_for_budget()
        self._pace.spend(PIECE_BYTES)

    def give_back(self, count: int) -> None:
        """Frees ``count`` slots."""
        self._running -= count
        self._let_in()

    def _let_in(self) -> None:
        """Gives free slots to the requests whose turn it is; the two queues take turns."""
        while self._running < self._max and (
            lane := next((name for name, queue in self._queues.items() if queue), None)
        ):
            others_wait = all(self._queues.values())
            slots = self._queues[lane].popleft()
            slots.grant()
            self._running += 1
            self.waiting -= 1
            if slots.left:
                self._queues[lane].append(slots)
            if others_wait:
                self._queues[lane] = self._queues.pop(lane)  # next time the other queue comes first
