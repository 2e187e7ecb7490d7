"""Refuses what other servers do and this one does not, by name."""

from __future__ import annotations

from triptych.contracts.errors import BadRequest

UNSUPPORTED = "unsupported_parameter"


def unsupported(path: str, reason: str) -> BadRequest:
    """Return the refusal of the field at ``path``."""
    return BadRequest(f"{path}: {reason}", param=path, code=UNSUPPORTED)
