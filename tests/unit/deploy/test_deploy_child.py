"""A supervised process does not outlive its supervisor, not even one that was killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = "from triptych.deploy.child import main; main('stand_in', grace_s=0.2)"
STAND_IN = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, {handler})
helper = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(os.getpid(), helper.pid, sys.argv[1:], flush=True)
while True: signal.pause()
"""
# Starts the child as the supervisor does, then hands its first line on and waits.
SUPERVISOR = f"""
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {LAUNCH!r}, "worker"], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, start_new_session=True)
child.stdin.write(b"{{}}\\n")
child.stdin.flush()
print(child.stdout.readline().decode(), end="", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("handler", ["lambda *_: sys.exit(0)", "signal.SIG_IGN"], ids=["obedient", "stubborn"])
def test_processes_end_with_a_killed_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN.replace("{handler}", handler))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)

    with subprocess.Popen([sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child, helper, arguments = supervisor.stdout.readline().split(maxsplit=2)
        descriptors = [os.pidfd_open(int(pid)) for pid in (child, helper)]
        supervisor.send_signal(signal.SIGKILL)

        for descriptor in descriptors:
            ended, _, _ = select.select([descriptor], [], [], 10.0)
            os.close(descriptor)
            assert ended, "a process outlived its supervisor"
    assert arguments.strip() == "['worker']"
