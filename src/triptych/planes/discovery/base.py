"""Defines the port of discovery, which tells the live workers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from triptych.contracts.card import Instance


class Lease(Protocol):
    """A registration that is kept alive until ``withdraw``."""

    async def withdraw(self) -> None:
        """Removes the instance from every watcher's view. May be called twice."""
        ...


class Discovery(Protocol):
    """Registers and watches the instances of one namespace."""

    async def register(self, instance: Instance) -> Lease:
        """Makes ``instance`` visible and keeps it so. A crash of this process removes it within 3 s.

        Raises ConfigError if it cannot work beside the live instances (``admission``): its name is taken, it has
        another checkpoint under the same model name, or its embeddings do not fit.
        """
        ...

    def watch(self) -> AsyncGenerator[tuple[Instance, ...], None]:
        """Yields the live instances: at once, also if there are none, and again after every change.

        Each snapshot is complete and sorted by id. Ends only when closed.
        """
        ...

    def doubt(self, model: str) -> str | None:
        """Explains why workers of ``model`` may be alive although ``watch`` does not show them now: the store is away,
        or they have not had the time to register again. None if nobody serves it. Valid until the next snapshot.
        """
        ...
