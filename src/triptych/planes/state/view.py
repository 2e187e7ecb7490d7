"""Keeps the keys that one watcher knows, and when each expires. Pure: the caller gives the time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from triptych.planes.state.base import Entry, Update


class _Known(NamedTuple):
    revision: int
    due_s: float | None
    """When the entry expires, by the caller's clock."""


class View:
    """Takes changes of a bucket, and returns the updates for the watcher. Holds no values."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._look_s: float | None = None
        """The time before which no entry expires; None if none ever does."""

    def __len__(self) -> int:
        return len(self._known)

    def keys(self) -> set[str]:
        return set(self._known)

    def replace(self, entries: Iterable[Entry], now: float) -> Update:
        """Replaces everything that was known by ``entries``. Returns a complete update."""
        self._known, self._look_s = {}, None
        return Update(tuple(entry for entry in entries if self._take_in(entry, now)), is_complete=True)

    def update(self, changed: Iterable[Entry], removed: Iterable[str], now: float) -> Update | None:
        """Takes changes, at most one for each key. Returns the update, or None if nothing has changed."""
        gone = list(removed)
        kept = []
        for entry in changed:
            if _has_expired(entry):
                gone.append(entry.key)
            elif self._take_in(entry, now):
                kept.append(entry)
        gone = [key for key in gone if self._known.pop(key, None) is not None]
        return Update(tuple(kept), tuple(gone)) if kept or gone else None

    def _take_in(self, entry: Entry, now: float) -> bool:
        known = self._known.get(entry.key)
        if _has_expired(entry) or (known is not None and known.revision == entry.revision):
            return False
        due_s = None if entry.left_s is None else now + entry.left_s
        self._known[entry.key] = _Known(entry.revision, due_s)
        if due_s is not None:
            self._look_s = due_s if self._look_s is None else min(self._look_s, due_s)
        return True

    def expire(self, now: float) -> Update | None:
        """Drops the entries that have expired by ``now``. Returns the update, or None if there were none."""
        if self._look_s is None or self._look_s > now:
            return None
        dues = {key: known.due_s for key, known in self._known.items() if known.due_s is not None}
        self._look_s = min((due_s for due_s in dues.values() if due_s > now), default=None)
        return self.update((), [key for key, due_s in dues.items() if due_s <= now], now)

    def wait_s(self, now: float, longest_s: float) -> float:
        """Returns for how long no entry can expire, but at most ``longest_s``."""
        return longest_s if self._look_s is None else max(0.0, min(longest_s, self._look_s - now))


def _has_expired(entry: Entry) -> bool:
    return entry.left_s is not None and entry.left_s <= 0
