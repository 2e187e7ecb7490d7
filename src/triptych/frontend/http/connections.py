"""Limits the connections of an HTTP server: their number, which of them is closed for a new one, and their time."""

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
"""File descriptors kept free for workers, fetches and decoders: so many, or half of those left if that is less."""
MAX_SURPLUS = 16
"""The most connections over the limit, on which probes are answered; at most a quarter of the free descriptors."""
SURPLUS_S = 5.0
"""The time after which a connection over the limit is closed."""
GRACE_S = 0.1
"""A new connection is not closed for another one without a request before this time."""
CHECK_S = 1.0
"""The interval at which time limits are checked, or a quarter of the shortest limit if that is less."""

Reason = Literal["head", "idle", "send", "surplus"]


class Connection(Protocol):
    """The parts of a connection that ``Connections`` uses."""

    transport: asyncio.Transport
    address: str
    """The client's address; for IPv6 its network (see ``network_of``)."""
    refusal: TriptychError | None
    deadline: float
    """When its time is up, by the event loop's clock, in seconds."""
    group: ConnectionGroup

    def end(self) -> None:
        """Closes once all requests that are there have been answered."""
        ...

    def timed_out(self, reason: Reason) -> None:
        """Ends the connection, because a time limit has passed."""
        ...

    def abort(self) -> None:
        """Closes at once."""
        ...


class ConnectionGroup:
    """All connections, or those of one address. Those without a request come in the order in which they wait."""

    def __init__(self) -> None:
        self.count = 0
        """The number of connections within the limit, busy ones included."""
        self.num_open = 0
        """The number of connections, those over the limit included."""
        self.idle: OrderedDict[Connection, None] = OrderedDict()
        """Connections between two requests; the one that has waited longest comes first."""
        self.heads: OrderedDict[Connection, None] = OrderedDict()
        """Connections before or within a request's head, or within a body that is discarded; the oldest comes first."""

    def remove(self, connection: Connection) -> None:
        self.idle.pop(connection, None)
        self.heads.pop(connection, None)


@dataclass
class Counts:
    """Counts the connections that the server ended, since its start."""

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
    "evicted": "Connections without a request that were closed for new ones.",
    "malformed": "Connections closed because what came was not HTTP.",
    "timed_out_head": "Connections closed after --head-timeout-s.",
    "timed_out_idle": "Connections closed after --keep-alive-timeout-s.",
    "timed_out_send": "Connections closed after --send-timeout-s, with the requests cancelled.",
    "timed_out_surplus": "Connections over a limit that did not end in time.",
}


class Connections:
    """Knows the open connections of one event loop. Each reports its changes; one timer checks all time limits."""

    def __init__(self, config: HttpConfig) -> None:
        self.config = config
        self.counts = Counts()
        self.open: set[Connection] = set()
        room = _files_left()
        self.max_surplus = max(1, min(MAX_SURPLUS, room // 4))
        self.max_open = min(config.max_connections or MAX_CONNECTIONS, room - self.max_surplus)
        if self.max_open < config.max_connections:
            log.warning("the limit on open files leaves room for %d connections, not --max-connections", self.max_open)
        self.max_per_address = config.max_connections_per_address or max(1, self.max_open // 2)
        self._all = ConnectionGroup()
        self._addresses: dict[str, ConnectionGroup] = {}
        self._surplus: OrderedDict[Connection, None] = OrderedDict()
        self._stalled: dict[Connection, tuple[int, float]] = {}
        """For each connection whose client does not read: the unsent bytes, and when they last became fewer."""
        self._empty = asyncio.Event()
        self._empty.set()
        self._timer: asyncio.TimerHandle | None = None
        limits_s = (config.head_timeout_s, config.keep_alive_timeout_s, config.send_timeout_s)
        self._check_s = min(CHECK_S, min(limits_s) / 4)

    # Events that connections report.

    def opened(self, connection: Connection) -> None:
        """Adds ``connection``, for which another may be closed. Sets its ``refusal`` if there is no room for it."""
        connection.group = self._addresses.setdefault(connection.address, ConnectionGroup())
        connection.group.num_open += 1
        self.open.add(connection)
        self._empty.clear()
        now = asyncio.get_running_loop().time()
        if self._timer is None:
            self._check(now)
        connection.refusal = self._refusal(connection, now - GRACE_S)
        if connection.refusal is None:
            self._count(connection)
            self.awaits_head(connection)
        else:
            self._take_surplus(connection, now)

    def request_received(self, connection: Connection) -> None:
        """Notes that a request has been received. A connection over the limit may now take the place of an idle one."""
        if connection.refusal is None:
            self.busy(connection)
            return
        connection.refusal = self._refusal(connection, asyncio.get_running_loop().time())
        if connection.refusal is None:
            self._surplus.pop(connection, None)
            self._count(connection)

    def _refusal(self, connection: Connection, silent_since: float) -> TriptychError | None:
        """Makes room for ``connection``. Returns None, or the error that says why there is no room.

        A connection without a request may be closed for it if it has been silent since ``silent_since``.
        """
        if connection.group.count >= self.max_per_address and not self._make_room(connection.group, silent_since):
            return TooManyRequests(
                f"{connection.address} has {connection.group.count} connections, "
                "the limit (--max-connections-per-address)",
                code="too_many_connections",
            )
        if self._all.count >= self.max_open and not self._make_room(self._all, silent_since):
            return Unavailable(
                f"{self._all.count} connections are open, the limit (--max-connections)", code="too_many_connections"
            )
        return None

    def _count(self, connection: Connection) -> None:
        self._all.count += 1
        connection.group.count += 1

    def refused(self, connection: Connection) -> None:
        """Counts a request that was refused because its connection is over the limit."""
        if isinstance(connection.refusal, TooManyRequests):
            self.counts.refused_address += 1
        else:
            self.counts.refused_full += 1

    def awaits_head(self, connection: Connection) -> None:
        """Notes that a request's head is expected, or the rest of a body that is discarded."""
        if connection.refusal is None and connection in self.open:
            self._wait(connection, self.config.head_timeout_s)
            self._all.heads[connection] = connection.group.heads[connection] = None

    def data_received(self, connection: Connection) -> None:
        """Notes that bytes came; on an idle connection they are the beginning of a head."""
        if connection in self._all.idle:
            self.awaits_head(connection)

    def idle(self, connection: Connection) -> None:
        """Notes that nothing is expected before the next request."""
        if connection.refusal is None and connection in self.open:
            self._wait(connection, self.config.keep_alive_timeout_s)
            self._all.idle[connection] = connection.group.idle[connection] = None

    def _wait(self, connection: Connection, limit_s: float) -> None:
        self.busy(connection)
        connection.deadline = asyncio.get_running_loop().time() + limit_s

    def busy(self, connection: Connection) -> None:
        """Notes that a request is being answered."""
        self._all.remove(connection)
        connection.group.remove(connection)

    def stalled(self, connection: Connection) -> None:
        """Notes that the client does not read what is sent."""
        if connection in self.open and connection not in self._stalled:
            self._stalled[connection] = (_unsent(connection), asyncio.get_running_loop().time())

    def writable(self, connection: Connection) -> None:
        """Notes that the client reads again."""
        self._stalled.pop(connection, None)

    def closed(self, connection: Connection) -> None:
        """Removes ``connection``. May be called twice."""
        if connection not in self.open:
            return
        self.open.discard(connection)
        self.busy(connection)
        self._stalled.pop(connection, None)
        if connection.refusal is None:
            self._all.count -= 1
            connection.group.count -= 1
        self._surplus.pop(connection, None)
        connection.group.num_open -= 1
        if not connection.group.num_open:
            self._addresses.pop(connection.address, None)
        if not self.open:
            self._empty.set()

    # Room for new connections.

    def _make_room(self, group: ConnectionGroup, silent_since: float) -> bool:
        """Closes the connection of ``group`` that has been idle or silent longest. Returns False if there is none."""
        first = next(iter(group.idle), None) or next(iter(group.heads), None)
        if first is None or (first in group.heads and first.deadline - self.config.head_timeout_s > silent_since):
            return False
        self.counts.evicted += 1
        self._drop(first)
        return True

    def _take_surplus(self, connection: Connection, now: float) -> None:
        while len(self._surplus) >= self.max_surplus:
            self._drop(next(iter(self._surplus)))
        connection.deadline = now + SURPLUS_S
        self._surplus[connection] = None

    def _drop(self, connection: Connection) -> None:
        self.closed(connection)
        connection.abort()

    # Time limits.

    def _check(self, now: float | None = None) -> None:
        """Checks all time limits, and sets the timer again while there are connections."""
        now = now or asyncio.get_running_loop().time()
        self._timer = asyncio.get_running_loop().call_later(self._check_s, self._check) if self.open else None
        self._expire("head", self._all.heads, now)
        self._expire("idle", self._all.idle, now)
        self._expire("surplus", self._surplus, now)
        for connection, (unsent, since) in list(self._stalled.items()):
            left = _unsent(connection)
            if left < unsent:
                self._stalled[connection] = (left, now)
            elif now - since >= self.config.send_timeout_s:
                self._end("send", connection)

    def _expire(self, reason: Reason, line: OrderedDict[Connection, None], now: float) -> None:
        while line and (first := next(iter(line))).deadline <= now:
            line.popitem(last=False)
            self._end(reason, first)

    def _end(self, reason: Reason, connection: Connection) -> None:
        name = f"timed_out_{reason}"
        setattr(self.counts, name, getattr(self.counts, name) + 1)
        self.busy(connection)
        self._stalled.pop(connection, None)
        connection.timed_out(reason)

    async def all_closed(self) -> None:
        await self._empty.wait()

    def close(self) -> None:
        """Aborts what is left. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self.open):
            connection.abort()

    def metrics(self) -> Iterable[Metric]:
        """Returns the metrics."""
        for name, text, value in (
            ("open", "Connections of clients.", len(self.open)),
            ("limit", "Most connections of clients (--max-connections, and the limit on open files).", self.max_open),
            ("idle", "Connections between two requests.", len(self._all.idle)),
            ("reading_head", "Connections whose request's head is not complete.", len(self._all.heads)),
            ("stalled", "Connections whose client does not read what is sent.", len(self._stalled)),
            ("unsent_bytes", "Bytes that wait for such clients.", sum(map(_unsent, self._stalled))),
        ):
            yield gauge(f"triptych_http_connections_{name}", text, value)
        for field in fields(self.counts):
            name, value = f"triptych_http_connections_{field.name}_total", getattr(self.counts, field.name)
            yield counter(name, _TEXTS[field.name], value)


def _files_left() -> int:
    """Returns how many connections the limit on open files allows, beside those open and those kept for other uses."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 1 << 30
    left = limit - len(os.listdir("/proc/self/fd"))
    return max(2, left - min(MAX_FILES_KEPT, left // 2))


def _unsent(connection: Connection) -> int:
    """Returns how many written bytes the client's host has not confirmed."""
    waiting = connection.transport.get_write_buffer_size()
    try:
        kept = fcntl.ioctl(connection.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (AttributeError, OSError, ValueError):  # it has been closed
        return waiting
    return waiting + int.from_bytes(kept, sys.byteorder)
