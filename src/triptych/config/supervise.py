"""Configuration of the supervisor of ``triptych up`` and its like."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class SuperviseConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How processes of one machine are watched over."""

    hang_timeout_s: Annotated[
        float,
        Meta(
            ge=0,
            description="A process that is ready and whose event loop gives no sign of life for so long is killed and "
            "started again; 0: none is. Time in which the machine lets it not run hardly counts.",
        ),
    ] = 30.0
