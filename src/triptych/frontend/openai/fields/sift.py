"""Takes out of a request body the fields that no schema class reads: what nobody knows, and what asks for nothing.

Bodies without such fields never come here. Raises BadRequest for fields that ask for what is not supported.
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
"""Unknown fields of one request that are told by their names."""
MAX_PATH_CHARACTERS = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")
_TOP = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()


@dataclass
class Ignored:
    """The unknown fields of one request."""

    found: dict[tuple[str, str], str] = field(default_factory=dict)
    """(schema class, name) to the path of the first object with such a field, for the first MAX_NAMED of these."""
    count: int = 0

    def add(self, fields: Fields, place: str, name: str) -> None:
        self.count += 1
        if len(self.found) < MAX_NAMED:
            self.found.setdefault((fields.schema, name), place)

    def rename(self, name_of: Callable[[str], str]) -> None:
        """Put the names in that others stand for while a large body is decoded."""
        self.found = {(schema, name_of(name)): place for (schema, name), place in self.found.items()}

    def paths(self) -> list[str]:
        found = [(place, name[:MAX_PATH_CHARACTERS]) for (_, name), place in self.found.items()]
        return [(f"{place}.{name}" if place else name)[:MAX_PATH_CHARACTERS] for place, name in found]

    def header(self) -> bytes:
        """The paths, for a response's header: without what does not belong there, and bounded in length."""
        paths = [_UNSAFE.sub("?", path) for path in self.paths()]
        more = self.count - len(paths)
        return ", ".join([*paths, f"and {more} more"] if more else paths).encode()


def sift(body: Data, fields: Fields) -> tuple[bytes, Ignored]:
    """Return ``body`` with nothing but the fields that its schema class reads, and what nobody knew.

    Raises BadRequest, and msgspec's errors where ``body`` is no JSON object.
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
    """Take fields out of the object or the objects that ``value`` is. Returns whether there were any.

    What is of a wrong type stays: the decoder refuses it.
    """
    if isinstance(value, list):
        found = [_sifted(one, fields, f"{path}[{index}]", ignored) for index, one in enumerate(value)]
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
        one, known = value.pop(name), fields.by_name.get(name)
        if known is None:
            ignored.add(fields, path, name)
        else:
            known.check(one, f"{path}.{name}")
    found = bool(extra)
    for name, inner in fields.inner.items():
        if isinstance(one := value.get(name), dict | list):
            found |= _sifted(one, inner, f"{path}.{name}", ignored)
    return found
