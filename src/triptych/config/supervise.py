"""Configures the supervisor of ``triptych up`` and ``triptych demo``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class SuperviseConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of the supervision of a machine's processes."""

    hang_timeout_s: Annotated[
        float,
        Meta(
            ge=0,
            description="A process that is ready is killed and started again if its event loop shows no sign of life "
            "for this time; 0: never. Time in which the machine does not let it run hardly counts.",
        ),
    ] = 30.0
