"""Tracks the work of a worker, by the frontend that sent it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce

from triptych.contracts.kv_events import NO_LOAD, Load
from triptych.contracts.request import GenerateRequest


def others(loads: Mapping[str, Load], frontend_id: str) -> Load:
    """Returns the load of all frontends but ``frontend_id``."""
    return reduce(Load.plus, (load for name, load in loads.items() if name != frontend_id), NO_LOAD)


class LoadTracker:
    """Adds up the load of the requests that a worker has now, by frontend."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}

    def loads(self) -> dict[str, Load]:
        """Returns loads by the frontends' ids. Frontends without work here are left out."""
        return dict(self._loads)

    def others(self, frontend_id: str) -> Load:
        """Returns the load of all frontends but ``frontend_id``."""
        return others(self._loads, frontend_id)

    @contextmanager
    def track(self, request: GenerateRequest) -> Iterator[_Entry]:
        """Counts ``request`` within the block."""
        entry = _Entry(self, request)
        try:
            yield entry
        finally:
            entry.close()

    def add(self, frontend_id: str, change: Load) -> None:
        """Adds ``change``, parts of which may be negative."""
        load = self._loads.get(frontend_id, NO_LOAD).plus(change)
        self._loads[frontend_id] = load
        if load == NO_LOAD:
            del self._loads[frontend_id]


class _Entry:
    def __init__(self, tracker: LoadTracker, request: GenerateRequest) -> None:
        self._tracker = tracker
        self._frontend_id = request.frontend_id
        self._tokens = (request.prompt_tokens or len(request.token_ids)) + len(request.generated_ids)
        self._waiting = 0 if request.is_prefilled_elsewhere else self._tokens
        tracker.add(self._frontend_id, Load(self._waiting, self._tokens, 1))

    def prefilled(self) -> None:
        """Takes note that the request's first token is there. May be called again."""
        if self._waiting:
            self._tracker.add(self._frontend_id, Load(-self._waiting))
            self._waiting = 0

    def close(self) -> None:
        self.prefilled()
        self._tracker.add(self._frontend_id, Load(0, -self._tokens, -1))
