"""Flags of the toy engine."""

from __future__ import annotations

import msgspec

from triptych.engines.args import flags_in


class ToyArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Flags of the toy engine."""

    remembers: bool = True
    """Whether it has a prefix cache, and so the ability to clear it."""


FLAGS = flags_in(ToyArgs)
