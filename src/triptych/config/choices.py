"""What a setting of few values may be."""

from __future__ import annotations

from enum import Enum
from typing import Literal, get_args, get_origin, get_type_hints

import msgspec


def choices(model: type[msgspec.Struct], field: str) -> list[str]:
    """The values of a field that is a Literal or an Enum, as a user spells them."""
    hint = get_type_hints(model)[field]
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [str(one.value) for one in hint] if issubclass(hint, Enum) else []
