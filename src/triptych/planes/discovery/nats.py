"""Finds workers by NATS: watches a JetStream key-value bucket.

A registration is a key that its owner writes again every ``HEARTBEAT_S``. Watchers receive every write. They drop a
worker whose key was not written for ``nats_bucket.TTL_S`` by their own clock, but only while the server and the watch
are known to work: a server that is away tells nothing about workers. When it is back, they have ``GRACE_S`` to return.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from ipaddress import ip_address

from triptych.aio.tasks import TaskSet
from triptych.contracts.card import Instance
from triptych.contracts.errors import ConfigError
from triptych.planes.discovery.admission import refusal
from triptych.planes.discovery.leases import Leases
from triptych.planes.discovery.nats_bucket import (
    TTL_S,
    Bucket,
    Entry,
    Registration,
    Watch,
    WrongRevision,
    key_of,
)
from triptych.planes.nats.access import NatsAccess
from triptych.planes.nats.link import RETRY_S, Link, NatsProblem, connect_again, connect_first
from triptych.planes.nats.problems import StreamGone

log = logging.getLogger("triptych.discovery")

HEARTBEAT_S = 0.5
FIRST_REGISTER_S = 15.0
"""The time limit of a first registration: longer than the servers of a cluster take to elect a new leader."""
GRACE_S = 5.0
"""The time for workers to return: longer than they take to notice a lost connection and make a new one."""
CLAIM_MARGIN_S = 0.5
SETTLE_S = 0.05
"""The time to read the changes that arrived before an answer."""
WITHDRAW_TIMEOUT_S = 1.0


class NatsLease:
    """Keeps a key fresh, over a connection of its own."""

    def __init__(self, access: NatsAccess, namespace: str, instance: Instance) -> None:
        self._access, self._namespace, self._instance = access, namespace, instance
        self._key = key_of(instance.name)
        self._link: Link | None = None
        self._bucket: Bucket | None = None
        self._revision = 0
        self._born = 0
        self._dead: dict[str, int] = {}
        """The last revisions of killed workers' registrations that hindered this one, by key."""
        self._usurped = False
        self._tasks = TaskSet()

    async def start(self) -> None:
        """Claims the name and keeps it. Raises ConfigError, after which nothing is left.

        Waits while the problem may pass, such as when the servers of a cluster elect a new leader.
        """
        deadline = time.monotonic() + FIRST_REGISTER_S
        while True:
            try:
                await self._join()
                break
            except NatsProblem as error:
                await self.withdraw()
                if time.monotonic() > deadline:
                    raise ConfigError(f"cannot register at NATS ({self._access}): {error}") from error
                log.warning("cannot register at NATS (%s) yet: %s; trying on", self._access, error)
                await asyncio.sleep(RETRY_S)
            except BaseException:
                await self.withdraw()
                raise
        self._tasks.spawn(self._keep(), f"heartbeat {self._instance.id}")

    async def _join(self) -> None:
        await self._use(await connect_first(self._access, self._instance.id))
        await self._outlast_the_dead()
        await self._claim()
        await self._be_admitted()

    async def _use(self, link: Link) -> None:
        self._link, self._bucket = link, Bucket(link, self._namespace)
        await self._bucket.create()

    async def _outlast_the_dead(self) -> None:
        """Waits until the registrations of killed workers that hinder this one expire. Raises ConfigError if one
        lives."""
        for entry in await self._the_bucket.entries():
            if entry.registration and refusal(self._instance, [entry.registration.instance]):
                self._dead[entry.key] = await self._outlast(entry)

    async def _claim(self) -> None:
        """Writes the key, after the last write of a dead worker if there is one."""
        after = self._dead.get(self._key, 0)
        while True:
            try:
                self._revision = self._born = await self._the_bucket.put(self._key, self._registration(), after)
                return
            except WrongRevision:
                holder = await self._the_bucket.get(self._key)
            if holder and holder.registration and holder.registration.instance.id == self._instance.id:
                after = holder.revision  # the write of an earlier attempt whose answer did not come
                continue
            after = await self._outlast(holder) if holder else 0

    async def _outlast(self, holder: Entry) -> int:
        """Returns the revision to write after, once ``holder`` is known to be dead. Raises ConfigError if it lives."""
        last: Entry | None = holder
        give_up = time.monotonic() + TTL_S + CLAIM_MARGIN_S
        while last and last.registration and time.monotonic() < give_up:
            await asyncio.sleep(HEARTBEAT_S / 2)
            last = await self._the_bucket.get(holder.key)
            if last and last.registration and last.revision != holder.revision:
                raise ConfigError(refusal(self._instance, [last.registration.instance]) or f"{holder.key} is taken")
        return last.revision if last else 0

    async def _be_admitted(self) -> None:
        """Checks the admission after the key is written.

        Of two workers that come at once, the later one then sees the other.
        """
        earlier = [
            entry.registration.instance
            for entry in await self._the_bucket.entries()
            if entry.registration and entry.born < self._born and entry.revision != self._dead.get(entry.key)
        ]
        if reason := refusal(self._instance, earlier):
            raise ConfigError(reason)

    def _registration(self, born: int = 0) -> Registration:
        return Registration(self._instance, born)

    @property
    def _the_bucket(self) -> Bucket:
        assert self._bucket is not None, "start comes first"
        return self._bucket

    async def _keep(self) -> None:
        """Renews the lease for ever. After any failure, begins again with a new connection."""
        while True:
            try:
                while True:
                    await asyncio.sleep(HEARTBEAT_S)
                    await self._renew()
            except (NatsProblem, ConfigError) as error:
                log.warning("NATS (%s) is away: %s; registering again when it is back", self._access, error)
            await self._reconnect()

    async def _reconnect(self) -> None:
        while True:
            if self._link is not None:
                await self._link.close()
            try:
                await self._use(await connect_again(self._access, self._instance.id))
                await self._renew()
            except (NatsProblem, ConfigError):
                continue
            log.info("NATS is back; %s is registered", self._instance.id)
            return

    async def _renew(self) -> None:
        """Writes the key again, even if it is gone. If that fails, the next heartbeat tries again."""
        registration = self._registration(self._born)
        try:
            self._revision = await self._the_bucket.put(self._key, registration, after=self._revision)
            return
        except StreamGone:
            await self._the_bucket.create()
            last = None
        except WrongRevision:
            last = await self._the_bucket.get(self._key)
        if last and last.registration and last.registration.instance.id != self._instance.id:
            self._complain_of(last.registration.instance)
            return
        with suppress(WrongRevision):
            self._born = 0  # earlier revisions are lost, or belong to another start of the server
            after = last.revision if last else 0
            self._revision = self._born = await self._the_bucket.put(self._key, self._registration(), after)

    def _complain_of(self, other: Instance) -> None:
        if not self._usurped:
            log.error(
                "%s at %s took the name %s while this worker was cut off; nobody sees this one until that one ends",
                other.id,
                other.host,
                self._instance.name,
            )
        self._usurped = True

    async def withdraw(self) -> None:
        await self._tasks.close()
        if self._link is None:
            return
        link, self._link = self._link, None
        try:
            if self._revision and not link.lost.is_set():
                async with asyncio.timeout(WITHDRAW_TIMEOUT_S):
                    await self._delete()
        except (NatsProblem, ConfigError, WrongRevision, TimeoutError) as error:
            log.info("%s expires by itself: %s", self._instance.id, error)
        finally:
            await link.close()

    async def _delete(self) -> None:
        try:
            await self._the_bucket.delete(self._key, after=self._revision)
        except WrongRevision:  # a cancelled renewal may have arrived all the same
            last = await self._the_bucket.get(self._key)
            if last and last.registration and last.registration.instance.id == self._instance.id:
                await self._the_bucket.delete(self._key, after=last.revision)


class NatsDiscovery:
    """A ``Discovery`` over NATS. Connections are made by ``register`` and ``watch``, one each."""

    def __init__(self, access: NatsAccess, namespace: str) -> None:
        self._access, self._namespace = access, namespace
        self._away = False
        """Whether a watch has lost NATS, and has not read the bucket again."""
        self._settled_s = 0.0
        """Until when workers may register again after NATS was away, by the monotonic clock."""

    async def register(self, instance: Instance) -> NatsLease:
        if _is_unspecified(instance.host):
            raise ConfigError(
                f"--host {instance.host}: other hosts cannot connect to that; give the address that they reach this by"
            )
        lease = NatsLease(self._access, self._namespace, instance)
        await lease.start()
        return lease

    async def watch(self) -> AsyncGenerator[tuple[Instance, ...], None]:
        leases, yielded = Leases(TTL_S, GRACE_S), None
        link = await connect_first(self._access, "watch")
        is_first = True
        try:
            while True:
                try:
                    async with aclosing(self._follow(link, leases, is_first)) as changes:
                        async for snapshot in changes:
                            is_first = False
                            if snapshot != yielded:
                                yielded = snapshot
                                yield snapshot
                except NatsProblem as error:
                    self._away = True
                    log.warning(
                        "NATS (%s) is away: %s; keeping the %d known workers until it is back",
                        self._access,
                        error,
                        len(leases),
                    )
                await link.close()
                link = await connect_again(self._access, "watch")
        finally:
            await link.close()

    def doubt(self, model: str) -> str | None:
        if self._away:
            return "NATS is away, and with it the news of workers"
        if time.monotonic() < self._settled_s:
            return "NATS was reached just now, and some workers may not have been heard of yet"
        return None

    async def _follow(self, link: Link, leases: Leases, is_first: bool) -> AsyncGenerator[tuple[Instance, ...], None]:
        """Yields a snapshot after everything that may have changed it. Raises NatsProblem when NATS is away."""
        bucket = Bucket(link, self._namespace)
        try:
            await bucket.create()
        except ConfigError as error:
            if is_first:
                raise
            raise NatsProblem(str(error)) from error
        async with bucket.watch() as watch:
            if not is_first:
                log.info("NATS is back")
            leases.forgive(time.monotonic())
            for entry in await watch.snapshot():
                if entry.registration:
                    leases.found(entry.key, entry.registration.instance, time.monotonic(), entry.age_s)
            leases.expire(time.monotonic())
            self._away, self._settled_s = False, time.monotonic() + GRACE_S
            while True:
                yield leases.snapshot()
                version = leases.version
                while leases.version == version:
                    await _take_in(watch, leases)


async def _take_in(watch: Watch, leases: Leases) -> None:
    """Waits for an update, or for a lease to end. A lease ends only while the watch works."""
    due = leases.next_due()
    timeout_s = TTL_S if due is None else min(TTL_S, max(0.0, due - time.monotonic()))
    if entry := await watch.next_entry(timeout_s):
        _note(entry, leases)
        return
    silent = time.monotonic()
    await watch.check()
    settled = time.monotonic() + SETTLE_S
    while entry := await watch.next_entry(max(0.0, settled - time.monotonic())):
        _note(entry, leases)
    leases.expire(silent)


def _note(entry: Entry, leases: Leases) -> None:
    if entry.registration is None:
        leases.ended(entry.key)
    else:
        leases.renewed(entry.key, entry.registration.instance, time.monotonic())


def _is_unspecified(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_unspecified
    return False
