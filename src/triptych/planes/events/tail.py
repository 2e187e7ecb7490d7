"""Puts a snapshot and the numbered updates after it in order, and notices what is missing. Pure."""

from __future__ import annotations

from triptych.contracts.kv_events import KvBatch, NumberedUpdate, Snapshot, WorkerUpdate
from triptych.planes.events.load_tracker import others


class Gap(Exception):
    """Messages are missing, or another publisher sent them: a snapshot must come first."""


class Tail:
    """The updates of one publisher, for the frontend ``frontend_id``."""

    def __init__(self, frontend_id: str) -> None:
        self._frontend_id = frontend_id
        self._birth = ""
        self._number = 0

    def begin(self, snapshot: Snapshot) -> WorkerUpdate:
        """Starts from ``snapshot``. Later updates change it."""
        self._birth, self._number = snapshot.birth, snapshot.number
        return WorkerUpdate(
            KvBatch(snapshot.number, snapshot.changes, reset=True), others(snapshot.loads, self._frontend_id)
        )

    def apply(self, update: NumberedUpdate) -> WorkerUpdate | None:
        """Returns the changes of the next update; None if it has none, or is in the snapshot already. Raises Gap."""
        if update.birth != self._birth:
            raise Gap(f"{update.birth} publishes in place of {self._birth}")
        if update.number <= self._number:
            return None
        if (missing := update.number - self._number - 1) > 0:
            raise Gap(f"{missing} messages were lost")
        self._number = update.number
        kv = KvBatch(update.number, update.changes) if update.changes else None
        load = None if update.loads is None else others(update.loads, self._frontend_id)
        return WorkerUpdate(kv, load) if kv or load is not None else None
