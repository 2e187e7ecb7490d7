"""Plans media. If a library would have to read a file's header, that runs in the sandbox and not in this process."""

from __future__ import annotations

from triptych.config.media import MediaLimits
from triptych.contracts.media import DecodableMedium
from triptych.engines.encoder.plan import Plan, check, plan_medium, plan_of
from triptych.media.errors import by_content
from triptych.media.formats.inspect import QUICK
from triptych.media.sandbox.pool import Sandbox
from triptych.models.base import Checkpoint, ModelFamily


class Planner:
    """Plans the media of one checkpoint. ``sandbox`` belongs to the caller."""

    def __init__(self, checkpoint: Checkpoint, family: ModelFamily, limits: MediaLimits, sandbox: Sandbox) -> None:
        self._checkpoint = checkpoint
        self._family = family
        self._limits = limits
        self._sandbox = sandbox

    def is_by_frames(self, medium: DecodableMedium) -> bool:
        """Tells whether the medium is handed over as its frames, and not as an embedding."""
        return medium.kind in self._family.by_frames

    async def plan(self, medium: DecodableMedium) -> Plan:
        """Returns the plan of a medium. Raises as ``encoder.plan.plan_medium`` does."""
        if medium.kind in QUICK:
            return plan_medium(medium, self._limits, self._family, self._checkpoint)
        check(medium, self._family)
        facts = await self._sandbox.inspect(medium.kind, medium.data, by_content(medium))
        return plan_of(medium, facts, self._family, self._checkpoint)
