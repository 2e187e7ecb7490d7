"""Keeps one namespace's workers in a key-value bucket in memory.

Each name has one key, which is deleted ``TTL_S`` after its last renewal.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from triptych.contracts.card import Instance
from triptych.planes.ignored import Ignored
from triptych.planes.keys import key_of
from triptych.planes.nats.kv import BucketConfig, KvBucket, KvEntry, WrongRevision
from triptych.planes.nats.kv import Watch as KvWatch
from triptych.planes.nats.link import Link

__all__ = ["TTL_S", "Bucket", "Entry", "Registration", "Watch", "WrongRevision", "key_of"]

log = logging.getLogger("triptych.discovery")

TTL_S = 2.5


class Registration(msgspec.Struct, frozen=True):
    """The value of a key."""

    instance: Instance
    born: int = 0
    """The revision of the registration's first write; 0 if this is the first. The server counts, so all agree on it."""


class Entry(msgspec.Struct, frozen=True):
    """A key as it was found, or a change of it."""

    key: str
    revision: int
    registration: Registration | None
    """The value; None if it was withdrawn, or if this version cannot read it."""
    age_s: float = 0.0
    """The age in seconds of an entry that was found in the bucket, by the server's clock alone; 0 for a change."""

    @property
    def born(self) -> int:
        return (self.registration.born if self.registration else 0) or self.revision


_DECODER = msgspec.json.Decoder(Registration)


class Bucket:
    """The bucket of ``namespace`` over one connection. Raises NatsProblem, or its subclass StreamGone, if it fails."""

    def __init__(self, link: Link, namespace: str) -> None:
        self.name = f"triptych-{namespace}"
        self._kv = KvBucket(link, BucketConfig(name=self.name, description="Triptych: who is alive", ttl_s=TTL_S))
        self._ignored = Ignored(log, f"bucket {self.name}")

    async def create(self) -> None:
        """Makes the bucket if it does not exist; an existing one is used as it is. Raises NoJetStream."""
        await self._kv.create()

    async def put(self, key: str, registration: Registration, after: int) -> int:
        """Writes a key whose revision is ``after`` (0 if it does not exist). Returns the new one. Raises
        WrongRevision."""
        return await self._kv.put(key, msgspec.json.encode(registration), after)

    async def delete(self, key: str, after: int) -> None:
        """Deletes a key. Raises WrongRevision if its last write is not ``after``."""
        await self._kv.delete(key, after)

    async def get(self, key: str) -> Entry | None:
        """Returns the key's last write, also if it is a withdrawal; None if there is none."""
        found = await self._kv.get(key)
        return None if found is None else self.read(found)

    async def entries(self) -> list[Entry]:
        """Returns all registrations in the bucket."""
        async with self.watch() as watch:
            return [entry for entry in await watch.snapshot() if entry.registration]

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Watch]:
        """Follows the bucket within the block."""
        async with self._kv.watch() as watch:
            yield Watch(self, watch)

    def read(self, found: KvEntry) -> Entry:
        return Entry(found.key, found.revision, self._registration(found.key, found.value), found.age_s)

    def _registration(self, key: str, value: bytes | None) -> Registration | None:
        """Decodes a registration.

        Returns None for an empty value (withdrawn or expired), and, with one warning, for any other invalid value.
        """
        if not value:
            return None
        try:
            return _DECODER.decode(value)
        except msgspec.MsgspecError as error:
            self._ignored.add(key, f"key {key}", f"it is no worker of this version: {error}")
            return None


class Watch:
    """Watches a bucket: its content, and then every change."""

    def __init__(self, bucket: Bucket, watch: KvWatch) -> None:
        self._bucket, self._watch = bucket, watch

    async def snapshot(self) -> list[Entry]:
        """Returns the content of the bucket. Call it once, before anything else."""
        return [self._bucket.read(found) for found in await self._watch.snapshot()]

    async def next_entry(self, timeout_s: float) -> Entry | None:
        """Returns the next write or withdrawal; None if there is none for ``timeout_s``."""
        found = await self._watch.next_entry(timeout_s)
        return None if found is None else self._bucket.read(found)

    async def check(self) -> None:
        """Checks the watch; see ``KvBucket.check``."""
        await self._watch.check()
