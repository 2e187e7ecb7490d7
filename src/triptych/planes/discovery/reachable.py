"""Leaves out workers that this process must not speak with, and logs each of them once."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from triptych.aio.listeners import authority
from triptych.contracts.card import Instance
from triptych.planes.discovery.base import Discovery, Lease

log = logging.getLogger("triptych.discovery")


class Reachable:
    """A ``Discovery`` whose watches show workers with TLS only, or without TLS only.

    So no token is sent unencrypted to a worker without TLS, and no TLS to a worker that does not speak it.
    """

    def __init__(self, discovery: Discovery, *, tls: bool) -> None:
        self._discovery = discovery
        self._tls = tls
        self._left_out: frozenset[str] = frozenset()
        """Models of workers that are left out."""

    async def register(self, instance: Instance) -> Lease:
        return await self._discovery.register(instance)

    async def watch(self) -> AsyncGenerator[tuple[Instance, ...], None]:
        logged: set[str] = set()
        async with aclosing(self._discovery.watch()) as snapshots:
            async for snapshot in snapshots:
                left_out = [instance for instance in snapshot if instance.tls != self._tls]
                for instance in left_out:
                    if instance.id not in logged:
                        log.error(
                            "leaving out worker %s at %s: %s",
                            instance.id,
                            authority(instance.host, instance.port),
                            self._why,
                        )
                logged = {instance.id for instance in left_out}
                self._left_out = frozenset(instance.model.name for instance in left_out)
                yield tuple(instance for instance in snapshot if instance.tls == self._tls)

    def doubt(self, model: str) -> str | None:
        if model in self._left_out:
            return "its workers cannot be spoken to from here (TLS); the frontend's log says why"
        return self._discovery.doubt(model)

    @property
    def _why(self) -> str:
        if self._tls:
            return "it has no TLS (--tls-cert), which --tls-ca asks for here"
        return "it speaks TLS only; give --tls-ca here too"
