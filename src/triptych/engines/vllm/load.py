"""Counts of what the engine does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Load:
    """Requests that run, and tokens that were handed out."""

    def __init__(self) -> None:
        self.running = 0
        self.generated_tokens = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request for the length of the block."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
