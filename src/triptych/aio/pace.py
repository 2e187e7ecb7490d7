"""Limits the bytes of large bodies and frames that an event loop moves in one turn, so that nothing else waits long."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

PIECE_BYTES = 256 << 10
"""The limit on bytes read or written at once, which takes 0.1 to 0.3 ms."""
TURN_BYTES = 1 << 20
"""The limit on bytes moved in one turn by all connections together, give or take a piece (1 ms)."""
SMALL_BYTES = 16 << 10
"""Moves up to this size are not counted: they cost by the message, not by the byte."""


class Pace:
    """The budget of bytes of one event loop's turns.

    A connection that has moved bytes calls ``spend``, and goes on in a later turn if the budget of this one is used up.
    """

    def __init__(self) -> None:
        self._left = TURN_BYTES
        self._waiting: deque[Callable[[], object]] = deque()
        self._scheduled = False

    @property
    def has_budget(self) -> bool:
        """Whether more may be moved in this turn. False while others wait: first come, first served."""
        return self._left > 0 and not self._waiting

    def spend(self, size_bytes: int) -> bool:
        """Notes that ``size_bytes`` were moved, and returns ``has_budget``."""
        if size_bytes > SMALL_BYTES:
            self._left -= size_bytes
            self._schedule()
        return self.has_budget

    def call_with_budget(self, go_on: Callable[[], object]) -> None:
        """Calls ``go_on``, which moves at most one piece, in a turn whose budget is not used up."""
        self._waiting.append(go_on)
        self._schedule()

    async def wait_for_budget(self) -> None:
        """Waits for a turn whose budget is not used up. Cancelling it holds up nobody."""
        if self.has_budget:
            return
        waiter = asyncio.get_running_loop().create_future()
        self.call_with_budget(partial(_wake, waiter))
        await waiter

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._left = min(TURN_BYTES, self._left + TURN_BYTES)
        going = min(len(self._waiting), max(0, -(-self._left // PIECE_BYTES)))
        ready = [self._waiting.popleft() for _ in range(going)]
        if self._waiting or self._left < TURN_BYTES:
            self._schedule()
        for go_on in ready:
            go_on()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


_paces: WeakKeyDictionary[asyncio.AbstractEventLoop, Pace] = WeakKeyDictionary()


def pace() -> Pace:
    """Returns the pace of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _paces.get(loop)
    if found is None:
        found = _paces[loop] = Pace()
    return found
