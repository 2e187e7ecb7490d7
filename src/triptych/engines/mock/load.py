"""Counts of what the mock engine does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from triptych.engines.mock.faults import Faults


class Load:
    """Counts requests, tokens and media, and lets faults happen at the tokens that flags name."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.running = 0
        self.generated_tokens = 0
        self.encoded = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request for the length of the block."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def token(self) -> None:
        """Count a token that is about to be handed out."""
        self.generated_tokens += 1
        self._faults.after_token(self.generated_tokens)
