"""Translates an engine's block events from its own hashes to ours, beside the engine, once for all routers.

It also keeps the promise that an index relies on: a block is reported as held only while its whole prefix is held.
Engines may evict a block and keep its children, which nothing can use until the block is computed again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from triptych.contracts.kv_events import KvChange, Level, packed
from triptych.kv.block_hash import block_hashes, root
from triptych.kv.prompt_keys import MediumAt, block_keys

EngineHash = int | bytes | str


class Stored(NamedTuple):
    """An event: consecutive blocks were put into one of an engine's tiers."""

    hashes: Sequence[EngineHash]
    """The engine's hashes of the blocks. Each stands for its whole prefix."""
    parent: EngineHash | None
    """The parent of the first block. None if the block begins a prompt."""
    token_ids: Sequence[int]
    """The token ids of all blocks; empty for a copy of blocks that are known already."""
    media: Sequence[Sequence[MediumAt]] = ()
    """A list of media for each block, or nothing. Offsets count from the block's first token, and are negative for a
    medium that began before it."""
    adapter: str = ""
    salt: str = ""
    tier: Level = Level.DEVICE


class _Block(msgspec.Struct, gc=False):
    """One block of the engine. It refers to others by name, because of references in cycles the garbage collector would
    have to look at every block."""

    own: int
    """Our hash of the block."""
    parent: EngineHash | None
    child: EngineHash | None
    """The first child. Most blocks have one child; a set for each block would take as long as all the rest."""
    tiers: int
    """Bits of the tiers that hold the block."""
    shown: int
    """Bits of the levels at which the block can be used: it and all blocks before it lie in tiers that count there."""
    others: set[EngineHash] | None = None
    """All children but the first."""

    def add_child(self, child: EngineHash) -> None:
        if self.child is None:
            self.child = child
        elif self.others is None:
            self.others = {child}
        else:
            self.others.add(child)

    def remove_child(self, child: EngineHash) -> None:
        if self.child == child:
            self.child = self.others.pop() if self.others else None
        elif self.others is not None:
            self.others.discard(child)


_LEVELS = [sum(1 << level for level in Level if tiers & ((2 << level) - 1)) for tiers in range(1 << len(Level))]
"""Bits of the levels that count any of some tiers, by the bits of these tiers."""
_ALL_LEVELS = (1 << len(Level)) - 1

_Turn = tuple[list[int], int]
"""A change of usability: (our hashes of blocks, bits of the levels at which they become usable, or stop being so)."""


class Translator:
    """Keeps the blocks of one engine. ``store`` and ``remove`` return the changes to report, in order.

    Changes are reported for each level down to the lowest tier that something was ever stored in. Most engines have
    one.
    """

    def __init__(self, block_size: int, placeholders: Collection[int] = ()) -> None:
        """``placeholders`` are the token ids that stand for media in expanded prompts."""
        self._block_size = block_size
        self._placeholders = placeholders
        self._levels = 1
        self._blocks: dict[EngineHash, _Block] = {}
        """Blocks by the engine's hash. With each block there are all blocks before it."""
        self.unknown = 0
        """Number of blocks passed over because they, or their parents, were never reported."""

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, name: EngineHash) -> bool:
        return name in self._blocks

    def store(self, event: Stored) -> list[KvChange] | None:
        """Adds blocks. Returns the changes, or None if a snapshot must be sent instead (a lower tier is in use now)."""
        names, blocks = event.hashes, self._blocks
        if event.token_ids and event.parent is not None and event.parent not in blocks:
            self.unknown += len(names)
            return []
        first_new = len(names)
        while event.token_ids and first_new and names[first_new - 1] not in blocks:
            first_new -= 1
        known, bit = self._known(names[:first_new]), 1 << event.tier
        for name in known:
            blocks[name].tiers |= bit
        turned: list[_Turn] = []
        for name in known:
            turned += self._update_shown(name)
        if first_new < len(names):
            turned.append(self._add(event, first_new))
        if event.tier >= self._levels:
            self._levels = event.tier + 1
            return None
        return self._changes(turned, stored=True)

    def remove(self, hashes: Sequence[EngineHash], tier: Level | None = Level.DEVICE) -> list[KvChange]:
        """Removes blocks from ``tier``, or from every tier if it is None. Returns the changes."""
        known, gone = self._known(hashes), _ALL_LEVELS if tier is None else 1 << tier
        for name in known:
            self._blocks[name].tiers &= ~gone
        turned: list[_Turn] = []
        for name in known:
            turned += reversed(self._update_shown(name))
        for name in known:
            self._prune(name)
        return self._changes(turned, stored=False)

    def clear(self) -> None:
        """Forgets all blocks of every tier."""
        self._blocks.clear()

    def snapshot(self) -> list[KvChange]:
        """Returns all blocks that are held now, as if they had just been stored."""
        return self._changes([([block.own], block.shown) for block in self._blocks.values()], stored=True)

    def _known(self, names: Sequence[EngineHash]) -> list[EngineHash]:
        known = [name for name in names if name in self._blocks]
        self.unknown += len(names) - len(known)
        return known

    def _add(self, event: Stored, first: int) -> _Turn:
        """Adds the blocks of ``event`` from ``first`` on. None of them is known, so no known block is their child."""
        parent = event.hashes[first - 1] if first else event.parent
        before = self._blocks[parent] if parent is not None else None
        tokens = block_keys(event.token_ids, event.media, self._block_size, self._placeholders)
        begin = before.own if before is not None else root(event.adapter, event.salt)
        size, tiers = self._block_size, 1 << event.tier
        hashes = block_hashes(tokens[first * size : len(event.hashes) * size], size, begin)
        new = event.hashes[first : first + len(hashes)]
        shown = _LEVELS[tiers] & (before.shown if before is not None else _ALL_LEVELS)
        if before is not None and new:
            before.add_child(new[0])
        for name, own, child in zip(new, hashes, [*new[1:], None], strict=False):
            self._blocks[name] = _Block(own, parent, child, tiers, shown)
            parent = name
        return hashes, shown

    def _update_shown(self, name: EngineHash) -> list[_Turn]:
        """Updates a block whose tiers have changed, and all blocks that hang on it.

        Returns where they become usable or stop being so, parents before children.
        """
        turned, todo, blocks = [], [name], self._blocks
        while todo:
            block = blocks[todo.pop()]
            above = blocks[block.parent].shown if block.parent is not None else _ALL_LEVELS
            shown = above & _LEVELS[block.tiers]
            if shown != block.shown:
                turned.append(([block.own], shown ^ block.shown))
                block.shown = shown
                if block.child is not None:
                    todo += (block.child, *(block.others or ()))
        return turned

    def _changes(self, turned: Sequence[_Turn], *, stored: bool) -> list[KvChange]:
        found = [
            [own for owns, levels in turned if levels >> level & 1 for own in owns] for level in range(self._levels)
        ]
        return [KvChange(level, stored, packed(owns)) for level, owns in enumerate(found) if owns]

    def _prune(self, name: EngineHash | None) -> None:
        """Forgets a block that no tier holds and that has no children; then its parent, if that is so of it now."""
        while name is not None and (block := self._blocks.get(name)) and not block.tiers and block.child is None:
            del self._blocks[name]
            if block.parent is not None:
                self._blocks[block.parent].remove_child(name)
            name = block.parent
