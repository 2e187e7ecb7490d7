"""Follows discovery, and reports which workers have come or gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from triptych.contracts.card import Instance
from triptych.frontend.fleet.model_registry import ModelRegistry
from triptych.planes.discovery.base import Discovery

log = logging.getLogger("triptych.fleet")


class Fleet:
    """Knows the live workers of all models. ``instances`` is replaced, never changed, at every snapshot."""

    def __init__(
        self,
        discovery: Discovery,
        models: ModelRegistry,
        on_gone: Callable[[Instance], None] = lambda instance: None,
        on_change: Callable[[tuple[Instance, ...]], None] = lambda instances: None,
    ) -> None:
        """``on_gone`` is called for each worker that is gone, before ``models`` are updated; ``on_change`` after."""
        self.instances: tuple[Instance, ...] = ()
        self.first_snapshot = asyncio.Event()
        """Set once the live workers are known."""
        self._discovery = discovery
        self._models = models
        self._on_gone = on_gone
        self._on_change = on_change

    async def follow(self) -> None:
        """Keeps the models up to date until cancelled; then stops loading them."""
        try:
            async with aclosing(self._discovery.watch()) as snapshots:
                async for snapshot in snapshots:
                    await self._take_in(snapshot)
                    self.first_snapshot.set()
        finally:
            await self._models.close()

    async def _take_in(self, snapshot: tuple[Instance, ...]) -> None:
        alive = {instance.id for instance in snapshot}
        for instance in self.instances:
            if instance.id not in alive:
                log.info("worker %s is gone", instance.id)
                self._on_gone(instance)
        self.instances = snapshot
        await self._models.update(snapshot)
        self._on_change(snapshot)
