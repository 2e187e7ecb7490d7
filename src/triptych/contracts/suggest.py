"""Suggests known names for an unknown one: the most similar name, or all of them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

MAX_LISTED = 16
"""Longer lists are left out if a similar name was found."""
MAX_COMPARED = 1000
"""The limit on known names that are compared."""
MAX_COMPARED_FOR_CLIENTS = 16
"""The limit on known names that are compared with a word of a request, on the event loop: 5 ms at worst."""
MAX_CHARACTERS = 64
"""A longer word is compared with no name."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Returns the name of ``known`` that ``word`` most likely stands for, or None if none is similar.

    Case and leading hyphens are ignored. A word that is the beginning of exactly one name stands for it.
    """
    if len(word) > MAX_CHARACTERS or not (wanted := _plain(word)):
        return None
    names = {_plain(name): name for name in islice(known, MAX_COMPARED)}
    if near := get_close_matches(wanted, names, n=1, cutoff=0.7):
        return names[near[0]]
    begun = [name for plain, name in names.items() if plain.startswith(wanted)]
    return begun[0] if len(begun) == 1 else None


def suggested_to_client(word: str, known: Iterable[str]) -> str:
    """Returns what ``did_you_mean`` returns for the first few known names."""
    return did_you_mean(word, islice(known, MAX_COMPARED_FOR_CLIENTS))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean NAME?``, or an empty string if no name is similar."""
    near = closest(word, known)
    return f"; did you mean {near}?" if near else ""


def or_all(word: str, known: Iterable[str]) -> str:
    """Returns the text to put after ``unknown NAME``: a suggestion and, unless there are many, all known names."""
    names = list(known)
    hint = did_you_mean(word, names)
    if hint and len(names) > MAX_LISTED:
        return hint
    listed = ", ".join(names) or "none"
    return f"{hint} Known: {listed}" if hint else f"; known: {listed}"


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()
