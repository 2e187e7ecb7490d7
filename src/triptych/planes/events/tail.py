"""What a follower makes of a snapshot and numbered messages. Pure."""

from __future__ import annotations

from triptych.contracts.kv_events import KvBatch, News, Snapshot, Told
from triptych.planes.events.load_tracker import others


class Gap(Exception):
    """Messages are missing, or are another publisher's: a snapshot must come first."""


class Tail:
    """One publisher's messages, for the frontend ``origin``."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._birth = ""
        self._number = 0

    def begin(self, snapshot: Snapshot) -> News:
        """All that there is; what is heard from now on are changes to it."""
        self._birth, self._number = snapshot.birth, snapshot.number
        return News(KvBatch(snapshot.number, snapshot.changes, reset=True), others(snapshot.loads, self._origin))

    def hear(self, told: Told) -> News | None:
        """What is new in the next message; None: nothing, or it is in the snapshot already. Raises Gap."""
        if told.birth != self._birth:
            raise Gap(f"{told.birth} speaks in the place of {self._birth}")
        if told.number <= self._number:
            return None
        if (missing := told.number - self._number - 1) > 0:
            raise Gap(f"{missing} messages were lost")
        self._number = told.number
        kv = KvBatch(told.number, told.changes) if told.changes else None
        load = None if told.loads is None else others(told.loads, self._origin)
        return News(kv, load) if kv or load is not None else None
