"""Decodes the body of an administrative request: its target, and the action's own parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta

from triptych.contracts.admin import Action
from triptych.contracts.errors import BadRequest
from triptych.contracts.media import Data
from triptych.contracts.shown import shown
from triptych.contracts.suggest import suggested_to_client
from triptych.frontend.openai.invalid.invalid_json import not_json
from triptych.frontend.openai.invalid.invalid_type import wrong_type

MAX_INSTANCES = 1024
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that every administrative request has."""

    model: Annotated[str, Meta(description="Name of the model whose workers are meant.")]
    instances: Annotated[
        tuple[str, ...],
        Meta(
            max_length=MAX_INSTANCES,
            description="Workers by name or id, as `/health` names them; empty: all that have the ability.",
        ),
    ] = ()
    all_or_nothing: Annotated[
        bool,
        Meta(
            description="If it fails at one worker, take it back at all. Refused for actions that nothing takes back."
        ),
    ] = False


@dataclass(frozen=True)
class AdminRequest:
    """A request for one action."""

    target: Target
    params: msgspec.Struct


@cache
def schema_of(action: Action[Any, Any]) -> type[Target]:
    """Returns the class of the action's request bodies: its own parameters, and those of every request."""
    fields = [(field.name, field.type, field.default) for field in msgspec.structs.fields(action.params)]
    name = "".join(word.capitalize() for word in action.name.split("_")) + "Request"
    made = msgspec.defstruct(name, fields, bases=(Target,), frozen=True, kw_only=True, forbid_unknown_fields=True)
    return cast(type[Target], made)


def decode(action: Action[Any, Any], body: Data) -> AdminRequest:
    """Decodes a body. Raises BadRequest, which names the field at fault."""
    schema = schema_of(action)
    try:
        request = msgspec.json.decode(body, type=schema)
    except msgspec.ValidationError as error:
        raise _wrong_field(error, body, schema) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(error, body) from None
    params = {name: getattr(request, name) for name in action.params.__struct_fields__}
    return AdminRequest(request, action.params(**params))


def _wrong_field(error: msgspec.ValidationError, body: Data, schema: type[Target]) -> BadRequest:
    if (unknown := _UNKNOWN.match(str(error))) is None:
        return wrong_type(error, body, schema)
    name, known = unknown[1], schema.__struct_fields__
    hint = suggested_to_client(name, known) or ";"
    return BadRequest(
        f"{shown(name)}: this field is not known{hint} known: {', '.join(known)}", param=name, code="unknown_parameter"
    )
