"""Counts what a decoded request holds, before anything is rendered or tokenised. Pure.

Every check raises BadRequest with the field and its limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triptych.config.requests import RequestLimits
from triptych.contracts.errors import BadRequest

MAX_NAME_CHARACTERS = 256
"""The limit on characters of `model`, `role`, `name`, `tool_call_id`, `user`, `session_id` and `cache_salt`."""
MAX_DEPTH = 32
"""The limit on nested levels of `chat_template_kwargs`, `documents` and `tool_calls`."""
MAX_STOP_CHARACTERS = 1024
"""The limit on characters of one stop string."""
TOKEN_ID_LISTS = ("stop_token_ids", "allowed_token_ids")
MAX_TOKEN_IDS = 1024
"""The limit on ids in each of TOKEN_ID_LISTS."""


def check_stops(stops: list[str], *lists: list[int] | None) -> None:
    """Checks stop strings, and the lists of TOKEN_ID_LISTS in their order."""
    for stop in stops:
        if len(stop) > MAX_STOP_CHARACTERS:
            raise too_many("stop", len(stop), "characters in one string", MAX_STOP_CHARACTERS)
    for name, ids in zip(TOKEN_ID_LISTS, lists, strict=True):
        check_token_ids(name, len(ids or ()))


def check_token_ids(name: str, count: int) -> None:
    """Checks how many ids one of TOKEN_ID_LISTS holds."""
    if count > MAX_TOKEN_IDS:
        raise too_many(name, count, "ids", MAX_TOKEN_IDS)


def check_template_values(place: str, given: dict[str, Any] | list[Any] | None, limits: RequestLimits) -> None:
    """Checks how many values and characters a chat template gets under ``place``."""
    if not given:
        return
    values = characters = 0
    for value in _values(given, place):
        values += 1
        characters += len(value) if isinstance(value, str) else 0
    if values > limits.max_template_values:
        limit = limits.max_template_values
        raise too_many(place, values, "values", limit, "--max-template-values")
    if characters > limits.max_template_characters:
        limit = limits.max_template_characters
        raise too_many(place, characters, "characters", limit, "--max-template-characters")


def check_depth(place: str, value: Any) -> None:
    """Checks how deeply ``value`` is nested."""
    for _ in _values(value, place):
        pass


def _values(value: Any, place: str) -> Iterator[Any]:
    """Yields all values within lists and objects, and all keys. Raises BadRequest if they are nested too deeply."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        if not inner:
            return
        yield from inner
        level = inner
    if any(isinstance(item, dict | list) and item for item in level):
        raise BadRequest(f"{place} is nested too deeply; the limit is {MAX_DEPTH} levels", param=place)


def check_name(place: str, text: str | None) -> None:
    """Checks the length of a name, a role or an id."""
    if text is not None and len(text) > MAX_NAME_CHARACTERS:
        raise too_many(place, len(text), "characters", MAX_NAME_CHARACTERS)


def too_many(place: str, count: int, what: str, limit: int, flag: str = "") -> BadRequest:
    """Returns the error for too many of ``what``; ``flag`` is the option that sets the limit."""
    named = f" ({flag})" if flag else ""
    return BadRequest(
        f"{place} has {count:,} {what}; the limit is {limit:,}{named}", param=place, code="limit_exceeded"
    )
