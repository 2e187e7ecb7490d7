"""The other agents that one agent knows: loaded once, bounded in number, dropped when they fail."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress

from triptych.transfer.checks import lost, malformed
from triptych.transfer.nixl.agent import NixlAgent, NixlError
from triptych.transfer.table import LeaseTable

MAX_REMOTES = 64
"""Most agents known; the one used longest ago is forgotten, unless a fetch uses it."""
MAX_METADATA = 1024
"""Most registrations known of one agent."""


class Remote:
    """Another agent. Whoever has it from ``Remotes.enter`` gives it back by ``leave``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loaded: set[bytes] = set()
        self.loading = asyncio.Lock()
        self.users = 0
        self.table: LeaseTable | None = None
        """Its lease table, where it is on this machine."""
        self.sought = False
        """Whether that was looked for."""
        self.failed = False
        """It does not answer: nobody may begin to use it, and when nobody does any more, it is forgotten."""


class Remotes:
    """For one event loop."""

    def __init__(self, agent: NixlAgent) -> None:
        self._agent = agent
        self._remotes: OrderedDict[str, Remote] = OrderedDict()

    def __len__(self) -> int:
        return len(self._remotes)

    def enter(self, name: str) -> Remote:
        """The agent ``name``, not forgotten before ``leave``. Raises Unavailable while a failed one is in use."""
        remote = self._remotes.get(name)
        if remote is None:
            remote = self._remotes[name] = Remote(name)
        if remote.failed:
            raise lost("its owner is gone or out of reach")
        self._remotes.move_to_end(name)
        remote.users += 1
        return remote

    def leave(self, remote: Remote) -> None:
        remote.users -= 1
        if remote.failed or len(self._remotes) > MAX_REMOTES:
            self._tidy()

    async def load(self, remote: Remote, metadata: Iterable[bytes], limit_s: float) -> None:
        """Load what is not loaded yet, the connection first.

        Raises NixlError, BadRequest for metadata of another agent, and TimeoutError after ``limit_s``.
        """
        for one in metadata:
            if one not in remote.loaded:
                async with asyncio.timeout(limit_s), remote.loading:
                    if one not in remote.loaded:
                        await self._load_one(remote, one)

    async def _load_one(self, remote: Remote, metadata: bytes) -> None:
        if not metadata.startswith(head(remote.name)) or len(remote.loaded) >= MAX_METADATA:
            raise malformed("its metadata is not its owner's")
        try:
            await asyncio.to_thread(self._agent.add_remote, metadata)
        except NixlError as error:
            error.refused = bool(remote.loaded)  # only the first one, which connects, tells of the agent's health
            raise
        remote.loaded.add(metadata)

    def _tidy(self) -> None:
        """Forget those that failed, and the oldest beyond the limit, where nobody uses them."""
        excess = len(self._remotes) - MAX_REMOTES
        for name, remote in list(self._remotes.items()):
            if remote.users == 0 and (remote.failed or excess > 0):
                excess -= 1
                del self._remotes[name]
                with suppress(NixlError):
                    self._agent.remove_remote(name)


def head(name: str) -> bytes:
    """What NIXL's serialised metadata of the agent ``name`` begins with."""
    word = name.encode()
    return b"nixlSerDes|Agent" + len(word).to_bytes(8, "little") + word + b"|"
