"""Tracks the load of each worker: what this frontend sent there, and what the worker reports of other frontends."""

from __future__ import annotations

from triptych.contracts.kv_events import NO_LOAD, Load


class Workload:
    """Adds up the load by worker. For one event loop. The caller ends everything that it begins."""

    def __init__(self) -> None:
        self._own: dict[str, Load] = {}
        self._others: dict[str, Load] = {}

    def begin(self, worker: str, load: Load) -> None:
        """Adds ``load`` of this frontend to ``worker``."""
        self._own[worker] = self._own.get(worker, NO_LOAD).plus(load)

    def end(self, worker: str, load: Load) -> None:
        """Removes ``load``, or the part of it that is done."""
        left = self._own.get(worker, NO_LOAD).less(load)
        if left == NO_LOAD:
            self._own.pop(worker, None)
        else:
            self._own[worker] = left

    def report(self, worker: str, load: Load) -> None:
        """Sets the load that ``worker`` reports of other frontends."""
        self._others[worker] = load

    def forget(self, worker: str) -> None:
        """Forgets the report of ``worker``, which is gone. What this frontend began there must still be ended."""
        self._others.pop(worker, None)

    def of(self, worker: str) -> Load:
        """Returns the load of ``worker``: this frontend's own, and that of others by the last report."""
        return self._own.get(worker, NO_LOAD).plus(self._others.get(worker, NO_LOAD))

    def requests(self, worker: str) -> int:
        """Returns ``of(worker).requests``, faster: it is called for every worker and every request."""
        return self._own.get(worker, NO_LOAD).requests + self._others.get(worker, NO_LOAD).requests
