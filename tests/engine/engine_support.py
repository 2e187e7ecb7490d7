"""A deployment on a real engine, started the way users start one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


class Served:
    """A deployment in child processes, by the command that users type."""

    def __init__(self, graph: Path, model: Path | str, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "triptych", "up", str(graph), "--model", str(model), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.url = self._wait_for_url()

    def _wait_for_url(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("Serving "):
                return line.split(" at ")[1].split()[0]
        self.process.wait(timeout=30)
        self.process.stdout.close()
        raise AssertionError("the deployment did not start:\n" + "\n".join(self.lines))

    def stop(self) -> int:
        self.process.terminate()
        output, _ = self.process.communicate(timeout=30)
        self.lines += output.splitlines()
        return self.process.returncode
