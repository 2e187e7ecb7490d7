"""Models the KV blocks of an engine: their users are counted, unused blocks are kept by hash and evicted by age.

It works as vLLM does. A request's blocks are freed from the last to the first, and the block unused for longest is
taken first. So a block never outlives one that stands before it in a prompt. Evicted blocks may go to host memory. From
there they are read back when they are needed, or dropped by age in turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from triptych.contracts.kv_events import Level

DEVICE, HOST = Level.DEVICE, Level.HOST


class BlockChange(NamedTuple):
    """A block that can be found by its hash from now on, or no longer, counting all tiers down to ``level``."""

    stored: bool
    hash: int
    level: int = DEVICE


class BlockPool:
    """Keeps blocks by key. A key is a hash, 0 or above, or a private name below 0 of a block that cannot be shared."""

    def __init__(self, blocks: int, host_blocks: int = 0) -> None:
        """``host_blocks`` is the number of evicted blocks that host memory can keep."""
        self.blocks = blocks
        self._host_blocks = host_blocks
        self._host: OrderedDict[int, None] = OrderedDict()
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._blank = blocks
        """Number of blocks that hold nothing."""
        self._names = 0
        self._changes: list[BlockChange] = []

    @property
    def free(self) -> int:
        """Number of blocks that can be taken."""
        return self._blank + len(self._idle)

    def holds(self, key: int) -> bool:
        """Returns whether the device has the block."""
        return key in self._users or key in self._idle

    def matched(self, hashes: Sequence[int], max_blocks: int) -> int:
        """Returns how many of the first blocks are here, at most ``max_blocks``."""
        for index, key in enumerate(hashes[:max_blocks]):
            if not self.holds(key):
                return index
        return min(max_blocks, len(hashes))

    def matched_on_host(self, hashes: Sequence[int]) -> int:
        """Returns how many of the first blocks are in host memory."""
        return next((index for index, key in enumerate(hashes) if key not in self._host), len(hashes))

    def read_back(self, hashes: Sequence[int]) -> list[int]:
        """Moves blocks from host memory to the device and takes them. There must be as many free blocks."""
        for key in hashes:
            del self._host[key]
        for key in hashes:
            self._free_one()
            self._changes.append(BlockChange(True, key))
            self._users[key] = 1
        return list(hashes)

    def idle(self, hashes: Sequence[int]) -> int:
        """Returns how many of these blocks have no user."""
        return sum(key in self._idle for key in hashes)

    def use(self, key: int) -> None:
        """Adds a user to a block that the device has."""
        if key in self._idle:
            del self._idle[key]
            self._users[key] = 1
        else:
            self._users[key] += 1

    def take(self, key: int | None = None) -> int:
        """Takes a free block, named ``key`` if that is given. Returns the key. There must be a free block."""
        if key is not None and self.holds(key):  # two requests computed it at the same time; it is kept once
            self.use(key)
            return key
        if key is None:
            self._free_one()
            self._names -= 1
            key = self._names
        else:
            below = self._leaves_host(key)
            self._free_one()
            self._found(key, below)
        self._users[key] = 1
        return key

    def _free_one(self) -> None:
        """Takes away one free block: an unused one, or the one that was idle longest."""
        if self._blank:
            self._blank -= 1
            return
        oldest, _ = self._idle.popitem(last=False)
        if oldest < 0:
            return
        self._changes.append(BlockChange(False, oldest))
        if self._host_blocks:
            self._host[oldest] = None
            if len(self._host) > self._host_blocks:
                dropped, _ = self._host.popitem(last=False)
                self._changes.append(BlockChange(False, dropped, HOST))

    def _leaves_host(self, key: int) -> bool:
        """Removes a block from host memory, where it is useless beside one on the device.

        Returns whether it was there.
        """
        if key not in self._host:
            return False
        del self._host[key]
        return True

    def _found(self, key: int, below: bool) -> None:
        """Records that a block was computed and can be found. With ``below`` host memory had it until now."""
        self._changes.append(BlockChange(True, key))
        if self._host_blocks and not below:
            self._changes.append(BlockChange(True, key, HOST))

    def name(self, key: int, known_as: int) -> int:
        """Names a full block of one user by its hash, so that others find it. Returns its key."""
        if self.holds(known_as):
            self.release([key])
            self.use(known_as)
            return known_as
        self._users[known_as] = self._users.pop(key)
        self._found(known_as, self._leaves_host(known_as))
        return known_as

    def release(self, keys: Sequence[int]) -> None:
        """Removes a user of ``keys``, which are in the order of its prompt."""
        for key in reversed(keys):
            if self._users[key] > 1:
                self._users[key] -= 1
            else:
                del self._users[key]
                self._idle[key] = None

    def clear(self) -> None:
        """Forgets all blocks, of which none may be in use."""
        assert not self._users, "a block is in use"
        for key in (key for key in self._idle if key >= 0):
            self._changes += [BlockChange(False, key, level) for level in self.levels]
        self._changes += [BlockChange(False, key, HOST) for key in self._host]
        self._idle.clear()
        self._host.clear()
        self._blank = self.blocks

    def hashes(self, level: int = DEVICE) -> list[int]:
        """Returns the hashes of all blocks that can be found down to ``level``, parents before children."""
        below = reversed(self._host) if level >= HOST else ()
        return [key for key in (*self._users, *reversed(self._idle), *below) if key >= 0]

    @property
    def levels(self) -> Sequence[Level]:
        """The levels that changes are about."""
        return (DEVICE, HOST) if self._host_blocks else (DEVICE,)

    def changes(self) -> list[BlockChange]:
        """Returns the changes since the last call."""
        changes, self._changes = self._changes, []
        return changes
