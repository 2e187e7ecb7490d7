"""What each worker is thought to hold, so that it is not sent again. A guess: the worker has the last word."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

NAMES_A_WORKER = 8192
"""Most names remembered of one worker; those used longest ago are forgotten."""


class MediaHints:
    """Names of content by worker. For one event loop."""

    def __init__(self, names_a_worker: int = NAMES_A_WORKER) -> None:
        self._max = names_a_worker
        self._names: dict[str, OrderedDict[str, None]] = {}

    def holds(self, worker: str, name: str) -> bool:
        return name in self._names.get(worker, ())

    def note(self, worker: str, names: Iterable[str]) -> None:
        """``worker`` was just sent, or used, ``names``."""
        known = self._names.setdefault(worker, OrderedDict())
        for name in names:
            known[name] = None
            known.move_to_end(name)
        while len(known) > self._max:
            known.popitem(last=False)

    def forget(self, worker: str, names: Iterable[str] | None = None) -> None:
        """``worker`` lacks ``names`` after all; None: it is gone, and all that it held."""
        if names is None:
            self._names.pop(worker, None)
            return
        known = self._names.get(worker)
        for name in names if known is not None else ():
            known.pop(name, None)  # type: ignore[union-attr]
