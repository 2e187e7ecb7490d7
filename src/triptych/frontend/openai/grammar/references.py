"""Follows ``$ref``s within one JSON schema. Pure."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from triptych.contracts.shown import shown


class References:
    """Checks the references of one schema. Each distinct one is followed once."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._sound: set[str] = set()

    def fault(self, reference: object) -> str | None:
        """Explains what is wrong with ``reference``; None if nothing is.

        It may name nothing in this schema, or lead back to itself through references alone.
        """
        seen: set[str] = set()
        while reference is not None:
            if not isinstance(reference, str) or not reference.startswith("#"):
                return "it must name a place in this schema, such as #/$defs/name"
            if reference in self._sound:
                break
            if reference in seen:
                return f"{shown(reference)} leads back to itself with nothing in between"
            seen.add(reference)
            target = self._resolve(reference)
            if not isinstance(target, dict | bool):
                return f"{shown(reference)} names no schema in this one"
            reference = _leads_to(target)
        self._sound |= seen
        return None

    def _resolve(self, reference: str) -> Any:
        """Returns the value at a JSON pointer in a URL's fragment (RFC 6901); None if there is none."""
        pointer = unquote(reference[1:])
        if pointer and not pointer.startswith("/"):
            return None  # an anchor, which grammar libraries do not look up
        target: Any = self._schema
        for step in pointer.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict):
                target = target.get(name)
            elif isinstance(target, list) and name.isascii() and name.isdecimal() and len(name) <= 6:
                target = target[int(name)] if int(name) < len(target) else None
            else:
                return None
        return target


def _leads_to(target: object) -> object:
    """Returns the reference that ``target`` consists of; None if ``target`` has other keywords too."""
    while isinstance(target, dict):
        if "$ref" in target:
            return target["$ref"]
        all_of = target.get("allOf")
        if isinstance(all_of, list) and all_of:
            target = next((member for member in all_of if isinstance(member, dict) and "$ref" in member), all_of[0])
            continue
        either = target.get("anyOf") or target.get("oneOf")
        target = either[0] if isinstance(either, list) and len(either) == 1 else None
    return None
