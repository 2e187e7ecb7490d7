"""Describes one request field and what becomes of it: the vocabulary of the tables in ``fields``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from triptych.contracts.errors import BadRequest
from triptych.frontend.openai.invalid.invalid_type import in_words
from triptych.frontend.openai.invalid.unsupported import UNSUPPORTED

Status = Literal["honoured", "accepted", "refused"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of one JSON object."""

    name: str
    status: Status
    note: str
    """What an honoured field does, why an accepted one may be left aside, what to use in place of a refused one."""
    known_to: str
    """Who defines it: ``OpenAI``, ``vLLM``, ``SGLang``, or ``Triptych``."""
    read: bool
    """The schema class holds it. Other fields are looked at only where they occur."""
    takes: tuple[Any, ...] = ()
    """Of a refused field the values that ask for nothing, beside null; of an honoured one the only values taken."""
    same_as: str = ""
    """A refused field also asks for nothing where it equals this one, which is 1 where it is absent."""
    type: Any = None
    """Of an accepted field that is not read."""

    def check(self, value: Any, path: str, same_as: Any = None) -> None:
        """Raises BadRequest where ``value`` at ``path`` asks for what is not supported, or is of a wrong type."""
        if self.status == "accepted":
            self._check_type(value, path)
        elif value is not None and not any(_same(value, one) for one in self.takes):
            if self.same_as and _same(value, 1 if same_as is None else same_as):
                return
            raise BadRequest(self._refusal(path), param=path, code=UNSUPPORTED)

    def _check_type(self, value: Any, path: str) -> None:
        try:
            msgspec.convert(value, self.type)
        except msgspec.ValidationError as error:
            reason = in_words(str(error).rpartition(" - at ")[0] or str(error))
            raise BadRequest(f"{path}: {reason}", param=path, code="invalid_type") from None

    def _refusal(self, path: str) -> str:
        asking = [one for one in self.takes if one]
        message = f"{path}: this value is not supported" if asking else f"{path} is not supported"
        if asking:
            message += f" (only {', '.join(msgspec.json.encode(one).decode() for one in asking)})"
        return f"{message}: {self.note}" if self.note else message


@dataclass(frozen=True, slots=True)
class Fields:
    """All fields of one JSON object that anybody knows."""

    schema: str
    """Name of the schema class."""
    fields: tuple[Field, ...]
    inner: Mapping[str, Fields | Tagged] = field(default_factory=dict)
    """Fields that hold an object, or a list of objects, with fields of its own."""
    read: frozenset[str] = field(init=False)
    by_name: Mapping[str, Field] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "read", frozenset(one.name for one in self.fields if one.read))
        object.__setattr__(self, "by_name", {one.name: one for one in self.fields})


@dataclass(frozen=True, slots=True)
class Tagged:
    """Objects of several kinds, told apart by their field ``type``."""

    kinds: Mapping[str, Fields]


def honoured(name: str, note: str, known_to: str = "OpenAI", *, only: tuple[Any, ...] = ()) -> Field:
    """A field that does what its definition says."""
    return Field(name, "honoured", note, known_to, read=True, takes=only)


def accepted(name: str, note: str, known_to: str = "OpenAI", *, type: Any = None) -> Field:
    """A field that changes no answer. Without a ``type`` the schema class holds it."""
    return Field(name, "accepted", note, known_to, read=type is None, type=type)


def refused(name: str, note: str, known_to: str, *neutral: Any, same_as: str = "") -> Field:
    """A field that is refused, unless it is null or one of the ``neutral`` values."""
    return Field(name, "refused", note, known_to, read=False, takes=neutral, same_as=same_as)


def _same(value: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1, but 1.0 is."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
