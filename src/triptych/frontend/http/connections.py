"""All connections of an HTTP server: how many there may be, who gives way to a new one, and whose time is up."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import sys
import termios
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, Protocol

from triptych.config.http import HttpConfig
from triptych.contracts.errors import TooManyRequests, TriptychError, Unavailable
from triptych.contracts.metric import Metric, counter, gauge

log = logging.getLogger("triptych.http")

MAX_CONNECTIONS = 16_384
MAX_FILES_KEPT = 512
"""Most file descriptors kept for workers, fetches and decoders; fewer where the limit is low: half of what is left."""
MAX_SURPLUS = 16
"""Most connections over the bound, on which probes are answered; a quarter of all where that is less."""
SURPLUS_S = 5.0
"""How long such a connection lives at most."""
GRACE_S = 0.1
"""A client has so long to begin its request before it may have to give way to one that has not asked either."""
CHECK_S = 1.0
"""Time limits are checked this often, or four times within the shortest of them."""

Reason = Literal["head", "idle", "send", "surplus"]


class Connection(Protocol):
    """A connection, as far as ``Connections`` has to do with it."""

    transport: asyncio.Transport
    address: str
    """The client's address, or its network where one client has many."""
    refusal: TriptychError | None
    deadline: float
    """By the event loop's clock, in seconds."""
    line: Line

    def end(self) -> None:
        """Close once all requests that are there have been answered."""
        ...

    def timed_out(self, reason: Reason) -> None:
        """End the connection, because a time limit has passed."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class Line:
    """Connections on which nobody waits for an answer, each the longest waiting first; of all, or of one address."""

    def __init__(self) -> None:
        self.count = 0
        """All connections within the bound, those that are being answered too."""
        self.num_open = 0
        """Those over the bound as well."""
        self.idle: OrderedDict[Connection, None] = OrderedDict()
        """Between two requests."""
        self.heads: OrderedDict[Connection, None] = OrderedDict()
        """Before or within a request's head, or the rest of a body that nobody reads."""

    def remove(self, one: Connection) -> None:
        self.idle.pop(one, None)
        self.heads.pop(one, None)


@dataclass
class Counts:
    """Connections that ended otherwise than by their client, since the start."""

    refused_full: int = 0
    refused_address: int = 0
    evicted: int = 0
    malformed: int = 0
    timed_out_head: int = 0
    timed_out_idle: int = 0
    timed_out_send: int = 0
    timed_out_surplus: int = 0


_TEXTS = {
    "refused_full": "Requests refused for --max-connections.",
    "refused_address": "Requests refused for --max-connections-per-address.",
    "evicted": "Idle or silent connections that were closed for new ones.",
    "malformed": "Connections closed for what was no HTTP.",
    "timed_out_head": "Connections closed after --head-timeout-s.",
    "timed_out_idle": "Connections closed after --keep-alive-timeout-s.",
    "timed_out_send": "Connections closed after --send-timeout-s, with the requests cancelled.",
    "timed_out_surplus": "Connections over a bound that did not end in time.",
}


class Connections:
    """Knows the open connections of one event loop. Each tells of its own changes; a shared timer does the rest."""

    def __init__(self, config: HttpConfig) -> None:
        self.config = config
        self.counts = Counts()
        self.open: set[Connection] = set()
        room = _files_left()
        self.max_surplus = max(1, min(MAX_SURPLUS, room // 4))
        self.most = min(config.max_connections or MAX_CONNECTIONS, room - self.max_surplus)
        if self.most < config.max_connections:
            log.warning("the limit on open files leaves room for %d connections, not --max-connections", self.most)
        self.max_per_address = config.max_connections_per_address or max(1, self.most // 2)
        self._all = Line()
        self._addresses: dict[str, Line] = {}
        self._surplus: OrderedDict[Connection, None] = OrderedDict()
        self._stalled: dict[Connection, tuple[int, float]] = {}
        """(bytes that wait for the client, when they last became fewer)."""
        self._empty = asyncio.Event()
        self._empty.set()
        self._timer: asyncio.TimerHandle | None = None
        limits_s = (config.head_timeout_s, config.keep_alive_timeout_s, config.send_timeout_s)
        self._check_s = min(CHECK_S, min(limits_s) / 4)

    # What connections tell.

    def opened(self, one: Connection) -> None:
        """Take ``one`` in, for which another may have to go. Sets its ``refusal`` where none can."""
        one.line = self._addresses.setdefault(one.address, Line())
        one.line.num_open += 1
        self.open.add(one)
        self._empty.clear()
        now = asyncio.get_running_loop().time()
        if self._timer is None:
            self._check(now)
        one.refusal = self._refusal(one, now - GRACE_S)
        if one.refusal is None:
            self._count(one)
            self.head(one)
        else:
            self._take_surplus(one, now)

    def asks(self, one: Connection) -> None:
        """A request's head is there: an answer is expected on ``one``, which others that ask nothing give way to."""
        if one.refusal is None:
            self.busy(one)
            return
        one.refusal = self._refusal(one, asyncio.get_running_loop().time())
        if one.refusal is None:
            self._surplus.pop(one, None)
            self._count(one)

    def _refusal(self, one: Connection, silent_since: float) -> TriptychError | None:
        """Why there is no room for ``one``, not even in place of one that is silent since so early a time."""
        if one.line.count >= self.max_per_address and not self._make_room(one.line, silent_since):
            return TooManyRequests(
                f"{one.address} has {one.line.count} connections, the limit (--max-connections-per-address)",
                code="too_many_connections",
            )
        if self._all.count >= self.most and not self._make_room(self._all, silent_since):
            return Unavailable(
                f"{self._all.count} connections are open, the limit (--max-connections)", code="too_many_connections"
            )
        return None

    def _count(self, one: Connection) -> None:
        self._all.count += 1
        one.line.count += 1

    def refused(self, one: Connection) -> None:
        """Its request was refused for want of room."""
        if isinstance(one.refusal, TooManyRequests):
            self.counts.refused_address += 1
        else:
            self.counts.refused_full += 1

    def head(self, one: Connection) -> None:
        """A request's head is expected now, or the rest of a body that nobody reads."""
        if one.refusal is None and one in self.open:
            self._wait(one, self.config.head_timeout_s)
            self._all.heads[one] = one.line.heads[one] = None

    def begins(self, one: Connection) -> None:
        """Something came: where the connection was idle, it is a head's first bytes."""
        if one in self._all.idle:
            self.head(one)

    def idle(self, one: Connection) -> None:
        """Nothing is expected before the next request."""
        if one.refusal is None and one in self.open:
            self._wait(one, self.config.keep_alive_timeout_s)
            self._all.idle[one] = one.line.idle[one] = None

    def _wait(self, one: Connection, limit_s: float) -> None:
        self.busy(one)
        one.deadline = asyncio.get_running_loop().time() + limit_s

    def busy(self, one: Connection) -> None:
        """Somebody waits for an answer on it."""
        self._all.remove(one)
        one.line.remove(one)

    def stalled(self, one: Connection) -> None:
        """Its client does not take what is sent."""
        if one in self.open and one not in self._stalled:
            self._stalled[one] = (_unsent(one), asyncio.get_running_loop().time())

    def flows(self, one: Connection) -> None:
        """Its client takes what is sent, again."""
        self._stalled.pop(one, None)

    def closed(self, one: Connection) -> None:
        """``one`` is gone. May be called twice."""
        if one not in self.open:
            return
        self.open.discard(one)
        self.busy(one)
        self._stalled.pop(one, None)
        if one.refusal is None:
            self._all.count -= 1
            one.line.count -= 1
        self._surplus.pop(one, None)
        one.line.num_open -= 1
        if not one.line.num_open:
            self._addresses.pop(one.address, None)
        if not self.open:
            self._empty.set()

    # Room.

    def _make_room(self, line: Line, silent_since: float) -> bool:
        """Close the longest idle connection of ``line``, else the one that has been silent longest; False: no such."""
        first = next(iter(line.idle), None) or next(iter(line.heads), None)
        if first is None or (first in line.heads and first.deadline - self.config.head_timeout_s > silent_since):
            return False
        self.counts.evicted += 1
        self._drop(first)
        return True

    def _take_surplus(self, one: Connection, now: float) -> None:
        while len(self._surplus) >= self.max_surplus:
            self._drop(next(iter(self._surplus)))
        one.deadline = now + SURPLUS_S
        self._surplus[one] = None

    def _drop(self, one: Connection) -> None:
        self.closed(one)
        one.abort()

    # Time.

    def _check(self, now: float | None = None) -> None:
        """Runs while there are connections."""
        now = now or asyncio.get_running_loop().time()
        self._timer = asyncio.get_running_loop().call_later(self._check_s, self._check) if self.open else None
        self._expire("head", self._all.heads, now)
        self._expire("idle", self._all.idle, now)
        self._expire("surplus", self._surplus, now)
        for one, (unsent, since) in list(self._stalled.items()):
            left = _unsent(one)
            if left < unsent:
                self._stalled[one] = (left, now)
            elif now - since >= self.config.send_timeout_s:
                self._end("send", one)

    def _expire(self, reason: Reason, line: OrderedDict[Connection, None], now: float) -> None:
        while line and (first := next(iter(line))).deadline <= now:
            line.popitem(last=False)
            self._end(reason, first)

    def _end(self, reason: Reason, one: Connection) -> None:
        name = f"timed_out_{reason}"
        setattr(self.counts, name, getattr(self.counts, name) + 1)
        self.busy(one)
        self._stalled.pop(one, None)
        one.timed_out(reason)

    async def all_closed(self) -> None:
        await self._empty.wait()

    def close(self) -> None:
        """Abort what is left. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for one in list(self.open):
            one.abort()

    def metrics(self) -> Iterable[Metric]:
        """Metrics."""
        for name, text, value in (
            ("open", "Connections of clients.", len(self.open)),
            ("limit", "Most connections of clients (--max-connections, and the limit on open files).", self.most),
            ("idle", "Connections between two requests.", len(self._all.idle)),
            ("reading_head", "Connections whose request's head is not there.", len(self._all.heads)),
            ("stalled", "Connections whose client does not take what is sent.", len(self._stalled)),
            ("unsent_bytes", "Bytes that wait for such clients.", sum(map(_unsent, self._stalled))),
        ):
            yield gauge(f"triptych_http_connections_{name}", text, value)
        for field in fields(self.counts):
            name, value = f"triptych_http_connections_{field.name}_total", getattr(self.counts, field.name)
            yield counter(name, _TEXTS[field.name], value)


def _files_left() -> int:
    """Connections that the limit on open files has room for, beside what is open and what is kept for others."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 1 << 30
    left = limit - len(os.listdir("/proc/self/fd"))
    return max(2, left - min(MAX_FILES_KEPT, left // 2))


def _unsent(one: Connection) -> int:
    """Bytes written that the client's host has not confirmed."""
    waiting = one.transport.get_write_buffer_size()
    try:
        kept = fcntl.ioctl(one.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (AttributeError, OSError, ValueError):  # it is closed by now
        return waiting
    return waiting + int.from_bytes(kept, sys.byteorder)
