"""Files and folders that must not outlive this process.

Their owners remove them when they close. A process that is stopped while it starts, or told twice to stop, ends without
closing anything: it calls ``remove_all`` instead. Any thread may call these functions.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_paths: dict[Path, None] = {}


def add(path: Path) -> None:
    """Have ``path`` removed when the process ends early, should it exist by then."""
    _paths[path] = None


def discard(path: Path) -> None:
    """Forget ``path``, which its owner has removed. Unknown paths are ignored."""
    _paths.pop(path, None)


def remove_all() -> None:
    """Remove everything that was added and not discarded. Never raises."""
    for path in reversed(list(_paths)):
        with suppress(OSError):
            path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path, ignore_errors=True)
        discard(path)


class PrivateFolder:
    """A new temporary folder that only this user can read. ``close`` removes it with all that is in it."""

    def __init__(self, prefix: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        add(self.path)

    def close(self) -> None:
        """May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        discard(self.path)
