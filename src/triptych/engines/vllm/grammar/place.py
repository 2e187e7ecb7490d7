"""Finds the pattern in a schema that a grammar library's error is about. The error itself does not say where it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

_OF_A_PATTERN = ("Regex parsing error", "EBNF parser error")
MAX_NAME = 64


def place_of(schema: str, reason: str) -> str:
    """Returns the path of the pattern in ``schema`` if ``reason`` is about a pattern and there is only one.

    Otherwise returns an empty text.
    """
    if not reason.startswith(_OF_A_PATTERN):
        return ""
    found = list(_patterns(msgspec.json.decode(schema)))
    return found[0] if len(found) == 1 else ""


def _patterns(schema: Any) -> Iterator[str]:
    left: list[tuple[str, Any]] = [("", schema)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            if isinstance(value.get("pattern"), str):
                yield f"{path}.pattern"
            named = value.get("patternProperties")
            if isinstance(named, dict):
                yield from (f"{path}.patternProperties.{name[:MAX_NAME]}" for name in named)
            left += [(f"{path}.{name[:MAX_NAME]}", inner) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
