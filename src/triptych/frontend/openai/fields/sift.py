"""Removes from a request body the fields that no schema class reads: unknown ones, and those that ask for nothing.

Bodies without such fields never come here. Fields that ask for something unsupported raise BadRequest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from triptych.contracts.media import Data
from triptych.frontend.openai.fields.field import Fields, Tagged

MAX_NAMED = 16
"""The limit on unknown fields of one request that are reported by name."""
MAX_PATH_CHARACTERS = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")
_TOP = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()


@dataclass
class Ignored:
    """The unknown fields of one request."""

    found: dict[tuple[str, str], str] = field(default_factory=dict)
    """Maps (schema class, name) to the path of the first object with such a field, for at most MAX_NAMED fields."""
    count: int = 0

    def add(self, fields: Fields, place: str, name: str) -> None:
        self.count += 1
        if len(self.found) < MAX_NAMED:
            self.found.setdefault((fields.schema, name), place)

    def rename(self, name_of: Callable[[str], str]) -> None:
        """Replaces the names that stand for long ones while a large body is decoded."""
        self.found = {(schema, name_of(name)): place for (schema, name), place in self.found.items()}

    def paths(self) -> list[str]:
        found = [(place, name[:MAX_PATH_CHARACTERS]) for (_, name), place in self.found.items()]
        return [(f"{place}.{name}" if place else name)[:MAX_PATH_CHARACTERS] for place, name in found]

    def header(self) -> bytes:
        """Returns the paths as a response's header: only characters that are allowed there, and bounded in length."""
        paths = [_UNSAFE.sub("?", path) for path in self.paths()]
        more = self.count - len(paths)
        return ", ".join([*paths, f"and {more} more"] if more else paths).encode()


def sift(body: Data, fields: Fields) -> tuple[bytes, Ignored]:
    """Returns ``body`` with only the fields that its schema class reads, and the unknown fields.

    Raises BadRequest, and msgspec's errors if ``body`` is no JSON object.
    """
    given = _TOP.decode(body)
    ignored = Ignored()
    for name in [name for name in given if name not in fields.read]:
        raw, known = given.pop(name), fields.by_name.get(name)
        if known is None:
            ignored.add(fields, "", name)
        else:
            other = given.get(known.same_as)
            known.check(_ANY.decode(raw), name, None if other is None else _ANY.decode(other))
    for name, inner in fields.inner.items():
        if name in given and _sifted(value := _ANY.decode(given[name]), inner, name, ignored):
            given[name] = msgspec.Raw(msgspec.json.encode(value))
    return msgspec.json.encode(given), ignored


def _sifted(value: Any, fields: Fields | Tagged, path: str, ignored: Ignored) -> bool:
    """Removes fields from an object, or from a list of objects. Returns whether there were any.

    Values of a wrong type stay: the decoder refuses them.
    """
    if isinstance(value, list):
        found = [_sifted(item, fields, f"{path}[{index}]", ignored) for index, item in enumerate(value)]
        return any(found)
    if not isinstance(value, dict):
        return False
    if isinstance(fields, Tagged):
        kind = value.get("type")
        if not isinstance(kind, str) or kind not in fields.kinds:
            return False
        fields = fields.kinds[kind]
    return _object_sifted(value, fields, path, ignored)


def _object_sifted(value: dict[str, Any], fields: Fields, path: str, ignored: Ignored) -> bool:
    extra = [name for name in value if name not in fields.read]
    for name in extra:
        member, known = value.pop(name), fields.by_name.get(name)
        if known is None:
            ignored.add(fields, path, name)
        else:
            known.check(member, f"{path}.{name}")
    found = bool(extra)
    for name, inner in fields.inner.items():
        if isinstance(member := value.get(name), dict | list):
            found |= _sifted(member, inner, f"{path}.{name}", ignored)
    return found
