"""Generates load in a closed loop over kept connections, one for each request in flight.

It must cost far less than what it measures: requests are bytes made beforehand, answers are parsed by
``sse.ResponseParser``, and an event costs one time stamp and a search or two. ``Summary.load_cpu_s`` has the cost. It
runs on one event loop, uvloop if that is available.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from benchmarks.measure import Record
from benchmarks.sse import ProtocolError, ResponseParser, has_text, is_error, usage_tokens

_clock = time.perf_counter


@dataclass(frozen=True)
class Request:
    """A whole HTTP request, and the number of tokens that its answer must have."""

    data: bytes
    expected_tokens: int


class _Connection(asyncio.Protocol):
    """One connection; answers come one at a time, into the record that was handed over with the request."""

    def __init__(self) -> None:
        self.usable = False
        self._transport: asyncio.Transport | None = None
        self._record: Record | None = None
        self._parser = ResponseParser()
        self._answered: asyncio.Future[None] | None = None
        self._ended = False  # [DONE] was seen

    def send(self, request: Request) -> tuple[Record, asyncio.Future[None]]:
        assert self._transport is not None
        self._parser, self._ended = ResponseParser(), False
        self._answered = asyncio.get_running_loop().create_future()
        self._record = Record(_clock(), request.expected_tokens)
        self._transport.write(request.data)
        return self._record, self._answered

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are no subclass.
        self._transport, self.usable = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        now = _clock()
        record = self._record
        if record is None:
            return
        try:
            events = self._parser.feed(data)
        except ProtocolError as error:
            self._finish(now, str(error))
            self.abort()
            return
        for payload in events:
            if has_text(payload):
                record.stamps.append(now)
            else:
                self._note(record, payload)
        if self._parser.complete:
            self._finish(now)

    def _note(self, record: Record, payload: bytes) -> None:
        """Handles events without text: the first with the role, the last with the usage, the end mark and errors."""
        if payload == b"[DONE]":
            self._ended = True
        elif is_error(payload):
            record.error = payload[:200].decode(errors="replace")
        else:
            record.tokens = usage_tokens(payload) or record.tokens

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._parser.end()
        self._finish(_clock(), "" if self._parser.complete else "connection closed early")

    def _finish(self, now: float, error: str = "") -> None:
        record, self._record = self._record, None
        if record is None:
            return
        if not error and self._parser.status != 200:
            error = f"HTTP {self._parser.status}: {self._parser.body[:200].decode(errors='replace')}"
        if not error and not self._ended:
            error = "no [DONE] at the end"
        record.error = record.error or error
        record.close(now)
        self.usable = self.usable and self._parser.keep_alive
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)


class _Slot:
    """Sends requests one after the other, on a connection that is renewed when the server closes it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._connection = _Connection()

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, self._connection = await loop.create_connection(_Connection, self._host, self._port)

    async def work(self, requests: Iterator[Request], records: list[Record]) -> None:
        for request in requests:  # shared by all slots: whoever is free takes the next
            try:
                if not self._connection.usable:
                    self._connection.abort()
                    await self.connect()
            except OSError as error:
                records.append(Record(_clock(), request.expected_tokens, end=_clock(), error=str(error)))
                continue
            record, answered = self._connection.send(request)
            records.append(record)
            await answered

    def close(self) -> None:
        self._connection.abort()


async def run_load(
    url: str, requests: Sequence[Request], concurrency: int, limit_s: float
) -> tuple[list[Record], float]:
    """Sends all requests, ``concurrency`` at a time. Returns the records, and the seconds that it took.

    Requests that are not answered or not sent by ``limit_s`` count as errors. Connecting is not timed.
    """
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    slots = [_Slot(parts.hostname, parts.port) for _ in range(min(concurrency, len(requests)))]
    records: list[Record] = []
    queue = iter(requests)
    try:
        await asyncio.gather(*(slot.connect() for slot in slots))
        start = _clock()
        tasks = [asyncio.create_task(slot.work(queue, records)) for slot in slots]
        await _bounded(tasks, limit_s)
        wall_s = _clock() - start
    finally:
        for slot in slots:
            slot.close()
    return _with_unfinished(records, requests), wall_s


async def run_load_beside(
    url: str, requests: Sequence[Request], concurrency: int, limit_s: float, streams: Sequence[Request], at_once: int
) -> tuple[list[Record], list[Record], float]:
    """Runs ``run_load`` with ``requests`` and, at the same time, with ``streams``, ``at_once`` of them at a time.

    Returns the records of both, and the seconds until all were answered.
    """
    (records, one_s), (beside, other_s) = await asyncio.gather(
        run_load(url, requests, concurrency, limit_s), run_load(url, streams, at_once, limit_s)
    )
    return records, beside, max(one_s, other_s)


async def _bounded(tasks: Sequence[asyncio.Task[None]], limit_s: float) -> None:
    try:
        _, late = await asyncio.wait(tasks, timeout=limit_s)
    except asyncio.CancelledError:
        late = set(tasks)
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task not in late:
            task.result()  # a fault of the generator itself must not pass for a result


def _with_unfinished(records: list[Record], requests: Sequence[Request]) -> list[Record]:
    for record in records:
        if not record.end:
            record.error = record.error or "not answered in time"
            record.close(_clock())
    missing = len(requests) - len(records)
    return records + [Record(0.0, 0, error="not sent in time") for _ in range(missing)]
