"""Counts what the mock engine does, and lets faults happen at the tokens that its flags name."""

from __future__ import annotations

from triptych.engines.load import Load
from triptych.engines.mock.faults import Faults


class MockLoad(Load):
    """``engines.load.Load`` with faults."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults

    def token(self) -> None:
        """Counts a token that is about to be handed out."""
        self.generated_tokens += 1
        self._faults.after_token(self.generated_tokens)
