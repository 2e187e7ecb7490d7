"""Remembers models that exist although nobody serves them now: a request for one may be tried again. Pure."""

from __future__ import annotations

from collections.abc import Iterable

MAX_KNOWN = 1024
"""The limit on remembered names of models that were served."""


class KnownModels:
    """Holds the names of expected models, and of models that were served: the one not seen for longest is forgotten."""

    def __init__(self, expected: Iterable[str] = (), max_known: int = MAX_KNOWN) -> None:
        self._expected = frozenset(expected)
        self._max_known = max_known
        self._served: dict[str, None] = {}
        """The names in the order in which they were last seen."""

    def __contains__(self, name: str) -> bool:
        return name in self._expected or name in self._served

    def by_age(self, names: Iterable[str]) -> list[str]:
        """Returns those of ``names`` that were served, beginning with the one that was not seen for longest."""
        return [name for name in self._served if name in set(names)]

    def served(self, names: Iterable[str]) -> None:
        """Takes in the models that are served now."""
        for name in names:
            self._served.pop(name, None)
            self._served[name] = None
        while len(self._served) > self._max_known:
            del self._served[next(iter(self._served))]
