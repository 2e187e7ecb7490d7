"""Remembers whether a store can be used, and logs when that changes."""

from __future__ import annotations

import logging

log = logging.getLogger("triptych.state")


class Health:
    """The health of one use of a bucket: its watches, or its calls."""

    def __init__(self, name: str, use: str) -> None:
        """``use`` is a verb for the log: ``read`` or ``write``."""
        self._name, self._use = name, use
        self.trouble: str | None = None
        """Why the store cannot be used, or None if it can, as far as is known."""

    def lost(self, reason: object) -> None:
        if self.trouble is None:
            log.warning("cannot %s shared state %s: %s; going on with what is known", self._use, self._name, reason)
        self.trouble = str(reason)

    def works(self) -> None:
        if self.trouble is not None:
            log.info("can %s shared state %s again", self._use, self._name)
        self.trouble = None
