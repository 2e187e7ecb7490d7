"""What each worker has to do: what this frontend sent there, and what the worker says of other ones."""

from __future__ import annotations

from triptych.contracts.kv_events import NO_LOAD, Load


class Workload:
    """For one event loop. What is begun must be ended."""

    def __init__(self) -> None:
        self._own: dict[str, Load] = {}
        self._others: dict[str, Load] = {}

    def begin(self, worker: str, load: Load) -> None:
        self._own[worker] = self._own.get(worker, NO_LOAD).plus(load)

    def end(self, worker: str, load: Load) -> None:
        """``load``, or a part of it, is done."""
        left = self._own.get(worker, NO_LOAD).less(load)
        if left == NO_LOAD:
            self._own.pop(worker, None)
        else:
            self._own[worker] = left

    def report(self, worker: str, load: Load) -> None:
        """What ``worker`` says that it has to do for other frontends."""
        self._others[worker] = load

    def forget(self, worker: str) -> None:
        """``worker`` is gone. What was begun there is still ended by those who began it."""
        self._others.pop(worker, None)

    def of(self, worker: str) -> Load:
        """What this frontend has at ``worker``, and that of others by its last report."""
        return self._own.get(worker, NO_LOAD).plus(self._others.get(worker, NO_LOAD))

    def requests(self, worker: str) -> int:
        """Of ``of(worker)``; asked of every worker for every request."""
        return self._own.get(worker, NO_LOAD).requests + self._others.get(worker, NO_LOAD).requests
