"""Keeps the remote agents that one agent knows: loaded once, bounded in number, dropped when they fail."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress

from triptych.transfer.checks import lost, malformed
from triptych.transfer.nixl.agent import NixlAgent, NixlError
from triptych.transfer.table import LeaseTable

MAX_REMOTES = 64
"""The limit on known agents; the one used longest ago is forgotten, unless a fetch uses it."""
MAX_METADATA = 1024
"""The limit on known registrations of one agent."""


class Remote:
    """A remote agent. A caller that got it from ``Remotes.enter`` gives it back by ``leave``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loaded: set[bytes] = set()
        """The metadata that NIXL has loaded."""
        self.loading = asyncio.Lock()
        self.users = 0
        self.table: LeaseTable | None = None
        """The agent's lease table if it is on this machine."""
        self.table_sought = False
        """Whether ``table`` was looked for."""
        self.failed = False
        """Whether the agent stopped answering. Then no caller may enter, and it is forgotten after the last one
        leaves."""


class Remotes:
    """Holds the remote agents. For one event loop."""

    def __init__(self, agent: NixlAgent) -> None:
        self._agent = agent
        self._remotes: OrderedDict[str, Remote] = OrderedDict()

    def __len__(self) -> int:
        return len(self._remotes)

    def enter(self, name: str) -> Remote:
        """Returns the agent ``name``, which is not forgotten before ``leave``.

        Raises Unavailable while an agent of that name that failed is still in use.
        """
        remote = self._remotes.get(name)
        if remote is None:
            remote = self._remotes[name] = Remote(name)
        if remote.failed:
            raise lost("its owner is gone or out of reach")
        self._remotes.move_to_end(name)
        remote.users += 1
        return remote

    def leave(self, remote: Remote) -> None:
        """Gives back an agent from ``enter``."""
        remote.users -= 1
        if remote.failed or len(self._remotes) > MAX_REMOTES:
            self._tidy()

    async def load(self, remote: Remote, metadata: Iterable[bytes], limit_s: float) -> None:
        """Loads the metadata that is not loaded yet, in the given order.

        Raises NixlError, BadRequest for metadata of another agent, and TimeoutError after ``limit_s``.
        """
        for part in metadata:
            if part not in remote.loaded:
                async with asyncio.timeout(limit_s), remote.loading:
                    if part not in remote.loaded:
                        await self._load_part(remote, part)

    async def _load_part(self, remote: Remote, metadata: bytes) -> None:
        if not metadata.startswith(metadata_header(remote.name)) or len(remote.loaded) >= MAX_METADATA:
            raise malformed("its metadata is not its owner's")
        try:
            await asyncio.to_thread(self._agent.add_remote, metadata)
        except NixlError as error:
            error.refused = bool(
                remote.loaded
            )  # only the first part, which connects, says whether the agent is reachable
            raise
        remote.loaded.add(metadata)

    def _tidy(self) -> None:
        """Forgets unused agents: those that failed, and the oldest ones over the limit."""
        excess = len(self._remotes) - MAX_REMOTES
        for name, remote in list(self._remotes.items()):
            if remote.users == 0 and (remote.failed or excess > 0):
                excess -= 1
                del self._remotes[name]
                with suppress(NixlError):
                    self._agent.remove_remote(name)


def metadata_header(name: str) -> bytes:
    """Returns the bytes that NIXL's serialised metadata of the agent ``name`` begins with."""
    word = name.encode()
    return b"nixlSerDes|Agent" + len(word).to_bytes(8, "little") + word + b"|"
