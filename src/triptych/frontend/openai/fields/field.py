"""Defines how the tables of ``fields`` describe a request field and its treatment."""

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
    """The effect of an honoured field, why ignoring an accepted one is right, or what to use for a refused one."""
    known_to: str
    """Which API defines it: ``OpenAI``, ``vLLM``, ``SGLang`` or ``Triptych``."""
    read: bool
    """Whether the schema class holds the field. Other fields are checked only if a body has them."""
    takes: tuple[Any, ...] = ()
    """Values of a refused field, beside null, that ask for nothing; or the only values of an honoured one."""
    same_as: str = ""
    """The name of a field. A refused field also asks for nothing if it equals that one, whose default is 1."""
    type: Any = None
    """The type of an accepted field that the schema class does not hold."""

    def check(self, value: Any, path: str, same_as: Any = None) -> None:
        """Checks a value. Raises BadRequest if it asks for something unsupported, or has a wrong type."""
        if self.status == "accepted":
            self._check_type(value, path)
        elif value is not None and not any(_same(value, taken) for taken in self.takes):
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
        asking = [taken for taken in self.takes if taken]
        message = f"{path}: this value is not supported" if asking else f"{path} is not supported"
        if asking:
            message += f" (only {', '.join(msgspec.json.encode(taken).decode() for taken in asking)})"
        return f"{message}: {self.note}" if self.note else message


@dataclass(frozen=True, slots=True)
class Fields:
    """All known fields of one JSON object."""

    schema: str
    """The name of the schema class."""
    fields: tuple[Field, ...]
    inner: Mapping[str, Fields | Tagged] = field(default_factory=dict)
    """The tables of objects, and of lists of objects, that are in a field."""
    read: frozenset[str] = field(init=False)
    by_name: Mapping[str, Field] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "read", frozenset(known.name for known in self.fields if known.read))
        object.__setattr__(self, "by_name", {known.name: known for known in self.fields})


@dataclass(frozen=True, slots=True)
class Tagged:
    """Objects of several kinds, which differ in their field ``type``."""

    kinds: Mapping[str, Fields]


def honoured(name: str, note: str, known_to: str = "OpenAI", *, only: tuple[Any, ...] = ()) -> Field:
    """Describes a field that does what its definition says."""
    return Field(name, "honoured", note, known_to, read=True, takes=only)


def accepted(name: str, note: str, known_to: str = "OpenAI", *, type: Any = None) -> Field:
    """Describes a field that changes no answer. Without a ``type`` the schema class holds it."""
    return Field(name, "accepted", note, known_to, read=type is None, type=type)


def refused(name: str, note: str, known_to: str, *neutral: Any, same_as: str = "") -> Field:
    """Describes a field that is refused, unless it is null or one of the ``neutral`` values."""
    return Field(name, "refused", note, known_to, read=False, takes=neutral, same_as=same_as)


def _same(value: Any, other: Any) -> bool:
    """Compares as JSON does: true is not 1, but 1.0 is."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
