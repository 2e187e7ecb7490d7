"""Describes how strongly a decoder is confined."""

from __future__ import annotations

import msgspec

WEAK, COMPLETE, TWOFOLD = 0, 1, 2
"""Levels of confinement. WEAK: the system allows something that a decoder does not need. COMPLETE: it refuses all of
that. TWOFOLD: two mechanisms refuse files."""


class Confinement(msgspec.Struct, frozen=True):
    """Says which mechanisms of the kernel confine a process."""

    landlock: int = 0
    """Version of Landlock's interface; 0 if there is none."""
    seccomp: bool = False
    namespaces: bool = False
    """Whether the process is alone in a user, a network and an IPC namespace."""

    @property
    def level(self) -> int:
        """``WEAK``, ``COMPLETE`` or ``TWOFOLD``.

        The system-call filter alone refuses everything. Without Landlock a child loads all its libraries first, and
        opens no file afterwards.
        """
        if not self.seccomp:
            return WEAK
        return TWOFOLD if self.landlock else COMPLETE

    def __str__(self) -> str:
        means = {
            f"Landlock {self.landlock}": self.landlock > 0,
            "seccomp": self.seccomp,
            "namespaces": self.namespaces,
        }
        return " + ".join(name for name, there in means.items() if there) or "resource limits alone"


class Folders(msgspec.Struct, frozen=True):
    """The paths of the file system that a decoder may read, with everything beneath them."""

    readable: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    """Folders in which names may be listed, and nothing else."""
