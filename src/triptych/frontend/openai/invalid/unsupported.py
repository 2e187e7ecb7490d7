"""Refuses, by name, fields that other servers honour and this one does not."""

from __future__ import annotations

from triptych.contracts.errors import BadRequest

UNSUPPORTED = "unsupported_parameter"


def unsupported(path: str, reason: str) -> BadRequest:
    """Returns the refusal of the field at ``path``."""
    return BadRequest(f"{path}: {reason}", param=path, code=UNSUPPORTED)
