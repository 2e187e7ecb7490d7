"""Keeps shared state in NATS: one JetStream key-value bucket for each of ours.

Each entry carries its time to live, and its age is measured by the server's clock alone. The server removes expired
entries up to a second late; until then readers leave them out. A bucket in memory outlives its processes, but not its
server; a durable one comes back with the server's disk.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from triptych.contracts.errors import ConfigError
from triptych.planes.ignored import Ignored
from triptych.planes.keys import key_of, name_of
from triptych.planes.nats.access import NatsAccess
from triptych.planes.nats.kv import BucketConfig, BucketFull, KvBucket, KvEntry, Watch, WrongRevision
from triptych.planes.nats.link import RETRY_S, Link, NatsProblem, connect
from triptych.planes.state.base import (
    MAX_TTL_S,
    Bucket,
    Entry,
    EntryTooLarge,
    RevisionMismatch,
    StateFull,
    StateUnavailable,
    Update,
)
from triptych.planes.state.health import Health
from triptych.planes.state.view import View

log = logging.getLogger("triptych.state")

CALL_TIMEOUT_S = 5.0
CHECK_S = 3.0
"""How often a watch without messages asks whether its bucket still exists."""
SETTLE_S = 0.05
"""The time for messages that came before an answer to be read."""
MARKER_S = 10
"""How long the server remembers that an entry was deleted, for late watches. Until then the marker takes room."""
ATTEMPTS = 4

_LIVES = "Triptych-Lives-S"
_TTL = "Nats-TTL"
_ROOM = {"Triptych-Room": "-" * 120}
"""A header that makes an entry longer than its deletion marker, which a full bucket could not take otherwise."""
_OLD_SERVER = "NATS 2.11 or later is needed for shared state, and its bucket must allow times to live (allow_msg_ttl)"

T = TypeVar("T")


class NatsState:
    """Implements ``SharedState``. Calls share one connection, made when it is needed; each watch has its own."""

    def __init__(self, access: NatsAccess, namespace: str, bucket: Bucket) -> None:
        self._access, self._bucket = access, bucket
        self._config = BucketConfig(
            # An underscore where discovery's buckets have a hyphen: no namespace makes the two names equal.
            name=f"triptych_{bucket.name}-{namespace}",
            description=f"Triptych: what all frontends know ({bucket.name})",
            max_bytes=bucket.max_bytes,
            in_memory=not bucket.is_durable,
        )
        self._ignored = Ignored(log, f"bucket {self._config.name}")
        self._reading, self._writing = Health(bucket.name, "read"), Health(bucket.name, "write")
        self._connecting = asyncio.Lock()
        self._link: Link | None = None
        self._kv: KvBucket | None = None
        self._is_closed = False

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, after: int | None = None) -> int:
        self._bucket.check(key, value, ttl_s)
        headers = {_LIVES: "never" if ttl_s is None else f"{ttl_s:.3f}", **_ROOM}
        if ttl_s is not None:
            headers[_TTL] = f"{math.ceil(ttl_s)}s"

        async def put(kv: KvBucket) -> int:
            if len(value) > kv.max_value_bytes:
                raise EntryTooLarge(f"{len(value)} bytes are more than NATS takes, {kv.max_value_bytes} (max_payload)")
            return await self._after(kv, key, after, lambda last: kv.put(key_of(key), value, last, headers))

        return await self._call(put)

    async def get(self, key: str) -> Entry | None:
        self._bucket.check(key)
        return await self._call(lambda kv: self._live(kv, key))

    async def delete(self, key: str, *, after: int | None = None) -> None:
        self._bucket.check(key)
        marker = {_TTL: f"{MARKER_S}s"}

        async def delete(kv: KvBucket) -> None:
            if after is None and await self._live(kv, key) is None:
                return
            await self._after(kv, key, after, lambda last: kv.delete(key_of(key), last, marker))

        await self._call(delete)

    async def _after(
        self, kv: KvBucket, key: str, after: int | None, write: Callable[[int | None], Coroutine[Any, Any, T]]
    ) -> T:
        """Writes after the revision ``after``; if that is 0, after the revision of an expired or deleted entry, if
        any."""
        last = after
        for _ in range(ATTEMPTS):
            try:
                if after and await self._live(kv, key) is None:
                    raise RevisionMismatch(key)
                return await write(last)
            except WrongRevision as error:
                if after != 0 or await self._live(kv, key) is not None:
                    raise RevisionMismatch(key) from error
                found = await kv.get(key_of(key))
                last = found.revision if found else 0
        raise RevisionMismatch(key)

    async def _live(self, kv: KvBucket, key: str) -> Entry | None:
        found = await kv.get(key_of(key))
        if found is None or found.value is None:
            return None
        age_s = 0.0
        if found.written is not None and found.headers.get(_LIVES) != "never":
            age_s = (await kv.now() - found.written).total_seconds()
        entry = self._entry(found, age_s)
        return None if entry is None or (entry.left_s is not None and entry.left_s <= 0) else entry

    def _entry(self, found: KvEntry, age_s: float) -> Entry | None:
        """Returns the entry in ``found``, or None with one warning if it is not an entry of this version."""
        key, value, lives_s = name_of(found.key), found.value or b"", _seconds(found.headers.get(_LIVES, ""))
        if key is None or lives_s is None or len(value) > self._bucket.max_entry_bytes:
            self._ignored.add(found.key, f"key {found.key}", "it is no entry of this version, or too long")
            return None
        return Entry(key, value, found.revision, None if math.isinf(lives_s) else lives_s - age_s)

    async def _call(self, call: Callable[[KvBucket], Coroutine[Any, Any, T]]) -> T:
        """Runs ``call`` with the bucket and returns its result. After a failure the next call uses a new connection."""
        if self._is_closed:
            raise StateUnavailable("it is closed")
        kv: KvBucket | None = None
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                kv = await self._connected()
                result = await call(kv)
        except BucketFull as error:
            raise StateFull(
                f"{self._bucket.name}: no room for another entry in {self._bucket.max_bytes} bytes"
            ) from error
        except (NatsProblem, ConfigError, TimeoutError) as error:
            if kv is not None and kv is self._kv:
                await self._disconnect()
            self._writing.lost(reason := str(error) or f"no answer for {CALL_TIMEOUT_S:g} s")
            raise StateUnavailable(reason) from error
        self._writing.works()
        return result

    async def _connected(self) -> KvBucket:
        async with self._connecting:
            if self._kv is None or self._link is None or self._link.lost.is_set():
                await self._disconnect()
                self._link = await connect(self._access, "state")
                try:
                    self._kv = await self._made(self._link)
                except BaseException:
                    await self._disconnect()
                    raise
            return self._kv

    async def _made(self, link: Link) -> KvBucket:
        """Returns the bucket, which is created if it does not exist. Raises NatsProblem and ConfigError."""
        kv = KvBucket(link, self._config)
        if not (await kv.create()).allow_msg_ttl:
            raise NatsProblem(_OLD_SERVER)
        return kv

    async def _disconnect(self) -> None:
        link, self._link, self._kv = self._link, None, None
        if link is not None:
            await link.close()

    async def watch(self) -> AsyncGenerator[Update, None]:
        view, is_first = View(), True
        while True:
            try:
                async with self._watching() as watch, aclosing(self._follow(watch, view)) as updates:
                    async for update in updates:
                        is_first = False
                        self._reading.works()
                        yield update
            except (NatsProblem, ConfigError) as error:
                self._reading.lost(error)
            if is_first:  # the store cannot be read; the watcher must not wait for it
                is_first = False
                yield view.replace((), time.monotonic())
            if (gone := view.expire(time.monotonic())) is not None:
                yield gone
            await asyncio.sleep(view.wait_s(time.monotonic(), RETRY_S * random.uniform(0.5, 1.5)))  # not all at once

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[Watch]:
        link = await connect(self._access, "state")
        try:
            kv = await self._made(link)
            async with kv.watch() as watch:
                yield watch
        finally:
            await link.close()

    async def _follow(self, watch: Watch, view: View) -> AsyncGenerator[Update, None]:
        """Yields all entries, then every change. Raises NatsProblem when NATS is away."""
        latest = {entry.key: entry for entry in await self._all(watch)}
        yield view.replace(self._entries(latest), time.monotonic())
        checked = time.monotonic()
        while True:
            now = time.monotonic()
            if (gone := view.expire(now)) is not None:
                yield gone
            if now - checked >= CHECK_S:
                await watch.check()
                checked = now
            change = await watch.next_entry(view.wait_s(now, max(0.0, checked + CHECK_S - now)))
            if change is not None and (update := self._taken_in(change, view)) is not None:
                yield update

    async def _all(self, watch: Watch) -> list[KvEntry]:
        """Returns all entries of the bucket. Raises NatsProblem."""
        found = await watch.snapshot()
        if watch.is_late:  # or the entries that it waited for have expired meanwhile
            if await watch.check():
                raise NatsProblem(f"reading bucket {self._config.name} takes too long")
            while (entry := await watch.next_entry(SETTLE_S)) is not None:
                found.append(entry)
        return found

    def _entries(self, found: dict[str, KvEntry]) -> list[Entry]:
        entries = [self._entry(stored, stored.age_s) for stored in found.values() if stored.value is not None]
        return [entry for entry in entries if entry is not None]

    def _taken_in(self, change: KvEntry, view: View) -> Update | None:
        entries = self._entries({change.key: change})
        key = name_of(change.key)
        return view.update(entries, () if entries or key is None else (key,), time.monotonic())

    def trouble(self) -> str | None:
        return self._reading.trouble or self._writing.trouble

    async def close(self) -> None:
        self._is_closed = True
        await self._disconnect()


def _seconds(text: str) -> float | None:
    """Parses the time to live in a header: inf for an entry that never expires, None for a malformed header."""
    if text == "never":
        return math.inf
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds <= MAX_TTL_S else None
