"""Entries as one watcher knows them, with the time at which each expires. Pure: times come from the caller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from triptych.planes.state.base import Entry, Update


class _Known(NamedTuple):
    revision: int
    due_s: float | None
    """When the entry expires, by the caller's clock."""


class View:
    """Takes in what is found or heard, and returns what the watcher is to be told of it. Holds no values."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._look_s: float | None = None
        """Nothing expires before then."""

    def __len__(self) -> int:
        return len(self._known)

    def keys(self) -> set[str]:
        return set(self._known)

    def replace(self, entries: Iterable[Entry], now: float) -> Update:
        """Forget what was known: ``entries`` are all that there are."""
        self._known, self._look_s = {}, None
        return Update(tuple(entry for entry in entries if self._take_in(entry, now)), is_complete=True)

    def update(self, changed: Iterable[Entry], removed: Iterable[str], now: float) -> Update | None:
        """Take in changes, of which a key has one. None: they change nothing."""
        gone = list(removed)
        told = []
        for entry in changed:
            if _has_expired(entry):
                gone.append(entry.key)
            elif self._take_in(entry, now):
                told.append(entry)
        gone = [key for key in gone if self._known.pop(key, None) is not None]
        return Update(tuple(told), tuple(gone)) if told or gone else None

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
        """Drop what was due by ``now``; None: nothing was."""
        if self._look_s is None or self._look_s > now:
            return None
        dues = {key: known.due_s for key, known in self._known.items() if known.due_s is not None}
        self._look_s = min((due_s for due_s in dues.values() if due_s > now), default=None)
        return self.update((), [key for key, due_s in dues.items() if due_s <= now], now)

    def wait_s(self, now: float, longest_s: float) -> float:
        """Return how long nothing can expire, ``longest_s`` at most."""
        return longest_s if self._look_s is None else max(0.0, min(longest_s, self._look_s - now))


def _has_expired(entry: Entry) -> bool:
    return entry.left_s is not None and entry.left_s <= 0
