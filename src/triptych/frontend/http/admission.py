"""How many generations run at once: a bound, and a bounded wait for it in which nobody starves another."""

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
"""Generations of a request that begin in one turn of the event loop. Those of larger requests begin over many turns,
four in each for all of them together: planning and sending one takes half a millisecond."""


class Party:
    """The generations of one request, which take their places one by one as there are any."""

    def __init__(self, admission: Admission, count: int) -> None:
        self.left = count
        """Generations that have no place yet."""
        self.begun = False
        """One has, or had, a place: then the others wait as long as it takes."""
        self.unused = 0
        """Places that no generation has come for yet."""
        self.waiters: deque[asyncio.Future[None]] = deque()
        self._admission = admission
        self._is_large = count > MAX_AT_ONCE

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for one generation, for the block. Raises Unavailable where the first took too long to come."""
        await self._admission.wait(self)
        try:
            if self._is_large:
                await self._admission.turn()
            yield
        finally:
            self._admission.give_back(1)

    def grant(self) -> None:
        """One of its generations has a place now."""
        self.left -= 1
        self.begun = True
        if self.waiters:
            self.waiters.popleft().set_result(None)
        else:
            self.unused += 1


class Admission:
    """Lets ``most`` generations run at once (0: all). For one event loop.

    The others wait by requests, which take turns: each gets one place a round, so that a request of many choices holds
    nobody up for longer than one of them takes, and is not held up itself. As each place is one generation's, no two
    requests can wait for each other. Requests with media stand in a line of their own, and the two lines take turns.
    """

    def __init__(self, most: int, max_waiting: int, wait_s: float) -> None:
        self._max = most
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._running = 0
        self._pace = Pace()
        self.waiting = 0
        """Generations without a place."""
        self._lines: dict[Lane, deque[Party]] = {"text": deque(), "media": deque()}

    def metrics(self) -> Iterable[Metric]:
        """Metrics."""
        requests = sum(not party.begun for line in self._lines.values() for party in line)
        for name, text, value in (
            ("triptych_requests_waiting", "Requests that wait for their first place (--max-running).", requests),
            ("triptych_generations_waiting", "Generations that wait for a place (--max-running).", self.waiting),
            ("triptych_generations_running", "Generations that have a place (--max-running).", self._running),
        ):
            yield gauge(name, text, value)

    @contextmanager
    def party(self, lane: Lane, count: int, param: str) -> Iterator[Party]:
        """A request of ``count`` generations, for the block: each of its generations then takes a ``place``.

        Raises BadRequest, naming ``param``, where so many never fit, and TooManyRequests where they do not now.
        """
        party = Party(self, count)
        if not self._max:
            party.unused, party.begun = count, True
            self._running += count
        else:
            self._check(count, param)
            self._lines[lane].append(party)
            self.waiting += count
            self._let_in()
        try:
            yield party
        finally:
            if party in self._lines[lane]:
                self._lines[lane].remove(party)
            self.waiting -= party.left if self._max else 0
            self.give_back(party.unused)

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

    async def wait(self, party: Party) -> None:
        """Have a place of ``party``'s. Raises Unavailable where its first does not come within the time limit."""
        if party.unused:
            party.unused -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        party.waiters.append(turn)
        try:
            await asyncio.wait([turn], timeout=None if party.begun else self._wait_s)
            if not party.begun:
                raise Unavailable(
                    f"no turn came within {self._wait_s:g} s (--max-wait-s); try again",
                    code="queue_timeout",
                    retry_after_s=RETRY_AFTER_S,
                )
            await asyncio.wait([turn])
        except BaseException:
            if turn.done():  # it got its place at the moment of leaving
                party.unused += 1
            elif turn in party.waiters:
                party.waiters.remove(turn)
            raise

    async def turn(self) -> None:
        """Wait for a turn of the event loop in which one more generation of a large request may begin."""
        await self._pace.room()
        self._pace.spend(PIECE_BYTES)

    def give_back(self, count: int) -> None:
        """So many places are free again."""
        self._running -= count
        self._let_in()

    def _let_in(self) -> None:
        """Give free places to the requests whose turn it is, the lines by turns."""
        while self._running < self._max and (lane := next((name for name, line in self._lines.items() if line), None)):
            others_wait = all(self._lines.values())
            party = self._lines[lane].popleft()
            party.grant()
            self._running += 1
            self.waiting -= 1
            if party.left:
                self._lines[lane].append(party)
            if others_wait:
                self._lines[lane] = self._lines.pop(lane)  # the other line is looked at first next time
