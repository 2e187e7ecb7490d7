"""Makes the faults that the mock engine's flags ask for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection

from triptych.engines.mock.args import MockArgs


class Faults:
    """Ends or blocks this process when its flags say so."""

    def __init__(self, args: MockArgs) -> None:
        self._args = args

    def after_token(self, made: int) -> None:
        """Fails as its flags say, after ``made`` tokens since the start."""
        if made == self._args.crash_after_tokens:
            crash()
        if made == self._args.hang_after_tokens:
            hang()

    def before_prefill(self, token_ids: Collection[int]) -> None:
        if self._args.poison_token in token_ids:
            (crash if self._args.poison == "crash" else hang)()


def crash() -> None:
    """Ends this process as a segmentation fault does."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    """Blocks the event loop for ever."""
    threading.Event().wait()
