"""Remembers which media each worker probably holds, so that they are not sent again. The worker has the last word."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

MAX_NAMES_A_WORKER = 8192
"""The limit on content hashes remembered of one worker; those used longest ago are forgotten."""


class MediaHints:
    """Keeps content hashes by worker. For one event loop."""

    def __init__(self, max_names_a_worker: int = MAX_NAMES_A_WORKER) -> None:
        self._max = max_names_a_worker
        self._names: dict[str, OrderedDict[str, None]] = {}

    def holds(self, worker: str, name: str) -> bool:
        """Returns whether ``worker`` is thought to hold ``name``."""
        return name in self._names.get(worker, ())

    def note(self, worker: str, names: Iterable[str]) -> None:
        """Notes that ``worker`` was just sent ``names``, or used them."""
        known = self._names.setdefault(worker, OrderedDict())
        for name in names:
            known[name] = None
            known.move_to_end(name)
        while len(known) > self._max:
            known.popitem(last=False)

    def forget(self, worker: str, names: Iterable[str] | None = None) -> None:
        """Notes that ``worker`` lacks ``names``. With None, the worker is gone and all its names are forgotten."""
        if names is None:
            self._names.pop(worker, None)
            return
        known = self._names.get(worker)
        for name in names if known is not None else ():
            known.pop(name, None)  # type: ignore[union-attr]
