"""Warns of what other programs left among our files and keys, without flooding the log."""

from __future__ import annotations

import logging
from collections.abc import Hashable

MAX_REMEMBERED = 1000
"""The limit on warnings. Beyond it, nothing more is logged."""


class Ignored:
    """Remembers entries that are ignored for good, and warns once of each."""

    def __init__(self, log: logging.Logger, place: str) -> None:
        self._log, self._place = log, place
        self._seen: set[Hashable] = set()

    def __contains__(self, mark: Hashable) -> bool:
        return mark in self._seen

    def add(self, mark: Hashable, name: str, reason: object) -> None:
        """Ignores ``mark`` from now; ``name`` and ``reason`` are for the log."""
        if mark in self._seen or len(self._seen) >= MAX_REMEMBERED:
            return
        self._seen.add(mark)
        self._log.warning("ignoring %s in %s: %s", name, self._place, reason)
        if len(self._seen) == MAX_REMEMBERED:
            self._log.warning("%s: more that is ignored is not told of", self._place)
