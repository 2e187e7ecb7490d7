"""Makes the start of the mock engine as hard to stop as that of a real engine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress

from triptych.observability import phases

_STUBBORN = ("sh", "-c", "trap '' INT TERM HUP; sleep 600; true")
_WAIT_S = 0.2


def hold_start(duration_s: float) -> None:
    """Blocks this thread for ``duration_s``, and ignores exceptions.

    Beside it run a child and a grandchild that ignore stop signals, in a session of their own.
    """
    phases.enter("holding the start up (--start-s)")
    deadline = time.monotonic() + duration_s
    child = subprocess.Popen(_STUBBORN, start_new_session=True)
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            with suppress(BaseException):
                time.sleep(min(left_s, _WAIT_S))
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
