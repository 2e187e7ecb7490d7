"""Decodes, renders and tokenises small texts on the event loop and others in threads, by their size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from triptych.aio.reclaim import trim
from triptych.aio.threads import Lane, in_new_thread
from triptych.contracts.metric import Metric, counter, gauge

T = TypeVar("T")

INLINE_CHARACTERS = 8_192
"""Texts up to this are prepared on the event loop, which takes a few tenths of a millisecond."""
INLINE_PARTS = 128
"""Maximum number of messages and parts of a text that is prepared on the event loop."""
LARGE_CHARACTERS = 1 << 20
"""Longer texts are prepared in a thread of their own, so that other texts do not wait for seconds behind them."""
MAX_WAITING = 256
MAX_WAIT_S = 30.0


class TextWork:
    """Owns the threads of one frontend in which texts are prepared. Belongs to one event loop, until ``close``."""

    def __init__(self, max_waiting: int = MAX_WAITING, max_wait_s: float = MAX_WAIT_S) -> None:
        """Creates the threads.

        ``max_waiting`` limits the calls that wait for each kind of thread, ``max_wait_s`` the time that a call waits.
        """
        self.bodies = Lane("body", 2, max_waiting, max_wait_s)
        self._quick = Lane("quick_text", 1, max_waiting, max_wait_s)
        self._texts = Lane("text", 2, max_waiting, max_wait_s)
        self._large = Lane("large_text", 1, max_waiting, max_wait_s)

    async def prepare(self, call: Callable[[], T], characters: int, parts: int = 1, *, quick: bool = False) -> T:
        """Runs ``call``, which works on so many characters, and returns its result.

        Raises its errors, and those of ``aio.threads.Lane``.

        ``quick`` says that the call takes milliseconds. All quick calls run in one thread, because each thread keeps
        its own table of known words.
        """
        if characters <= INLINE_CHARACTERS and parts <= INLINE_PARTS:
            return call()
        if characters > LARGE_CHARACTERS:
            return await self._large.run(partial(_large, call))
        return await (self._quick if quick else self._texts).run(call)

    def close(self) -> None:
        """Ends the threads. May be called twice."""
        for lane in self._lanes:
            lane.close()

    def metrics(self) -> Iterable[Metric]:
        """Metrics."""
        calls, refused = sum(lane.calls for lane in self._lanes), sum(lane.refused for lane in self._lanes)
        text = "Bodies and texts that threads decode, render or tokenise, or that wait for it (--max-texts-waiting)."
        yield gauge("triptych_text_jobs", text, calls)
        text = "Requests refused because too many texts waited, or theirs took too long (--max-wait-s)."
        yield counter("triptych_text_jobs_refused_total", text, refused)

    @property
    def _lanes(self) -> tuple[Lane, ...]:
        return self.bodies, self._quick, self._texts, self._large


def _large(call: Callable[[], T]) -> T:
    """Runs ``call`` and returns its result. Memory that it used meanwhile is given back to the system."""
    try:
        return in_new_thread(call)
    finally:
        trim()
