"""From an engine's block events, in its own hashes, to ours; done beside the engine, once for all routers.

It also keeps the promise that an index relies on: a block is said to be held only while its whole prefix is. Engines
may evict a block and keep what hangs on it, which nothing can use then, until the block is computed again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from triptych.contracts.kv_events import KvChange, Level, packed
from triptych.kv.block_hash import MediumAt, block_hashes, named_within, root

EngineHash = int | bytes | str


class Stored(NamedTuple):
    """Consecutive blocks that an engine has put into one of its tiers."""

    hashes: Sequence[EngineHash]
    """Each stands for its whole prefix."""
    parent: EngineHash | None
    """Of the first; None: it begins a prompt."""
    token_ids: Sequence[int]
    """Of all of them; empty for a copy of blocks that are known already."""
    media: Sequence[Sequence[MediumAt]] = ()
    """Of each block, or of none; offsets count from its first token, and are negative for what began before."""
    adapter: str = ""
    salt: str = ""
    tier: Level = Level.DEVICE


class _Block(msgspec.Struct, gc=False):
    """Knows others by name alone: in a cycle of references, the garbage collector would have to look at every block."""

    own: int
    parent: EngineHash | None
    child: EngineHash | None
    """The first that hangs on it. Most have one: a set for each block would take as long as all the rest."""
    tiers: int
    """Bits of the tiers that hold it."""
    shown: int
    """Bits of the levels at which it can be used: it and all before it are in tiers that count there."""
    others: set[EngineHash] | None = None
    """All but the first that hang on it."""

    def take(self, child: EngineHash) -> None:
        if self.child is None:
            self.child = child
        elif self.others is None:
            self.others = {child}
        else:
            self.others.add(child)

    def clear_traceback(self, child: EngineHash) -> None:
        if self.child == child:
            self.child = self.others.pop() if self.others else None
        elif self.others is not None:
            self.others.discard(child)


_LEVELS = [sum(1 << level for level in Level if tiers & ((2 << level) - 1)) for tiers in range(1 << len(Level))]
"""By the bits of some tiers: bits of the levels that count any of them."""
_EVERY = (1 << len(Level)) - 1

_Turn = tuple[list[int], int]
"""(our hashes of blocks, bits of the levels at which they can be used from now on, or no more)."""


class Translator:
    """One engine's blocks. ``store`` and ``remove`` return what to report, in order; None: a snapshot instead.

    Changes are told of each level down to the lowest tier that something was stored in: most engines have one only.
    """

    def __init__(self, block_size: int, placeholders: Collection[int] = ()) -> None:
        """``placeholders``: ids that stand for media in expanded prompts."""
        self._block_size = block_size
        self._placeholders = placeholders
        self._levels = 1
        self._blocks: dict[EngineHash, _Block] = {}
        """With each all those before it."""
        self.unknown = 0
        """Blocks passed over because they, or what they hang on, were never reported."""

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, name: EngineHash) -> bool:
        return name in self._blocks

    def store(self, event: Stored) -> list[KvChange] | None:
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
            turned += self._settle(name)
        if first_new < len(names):
            turned.append(self._add(event, first_new))
        if event.tier >= self._levels:
            self._levels = event.tier + 1
            return None
        return self._changes(turned, stored=True)

    def remove(self, hashes: Sequence[EngineHash], tier: Level | None = Level.DEVICE) -> list[KvChange]:
        """``tier``: None for all of them."""
        known, gone = self._known(hashes), _EVERY if tier is None else 1 << tier
        for name in known:
            self._blocks[name].tiers &= ~gone
        turned: list[_Turn] = []
        for name in known:
            turned += reversed(self._settle(name))
        for name in known:
            self._prune(name)
        return self._changes(turned, stored=False)

    def clear(self) -> None:
        """All is gone, in every tier."""
        self._blocks.clear()

    def snapshot(self) -> list[KvChange]:
        """All that is held now, as if just stored."""
        return self._changes([([block.own], block.shown) for block in self._blocks.values()], stored=True)

    def _known(self, names: Sequence[EngineHash]) -> list[EngineHash]:
        known = [name for name in names if name in self._blocks]
        self.unknown += len(names) - len(known)
        return known

    def _add(self, event: Stored, first: int) -> _Turn:
        """The blocks of ``event`` from ``first`` on: as none of them is known, nothing that is known hangs on them."""
        parent = event.hashes[first - 1] if first else event.parent
        before = self._blocks[parent] if parent is not None else None
        tokens = named_within(event.token_ids, event.media, self._block_size, self._placeholders)
        begin = before.own if before is not None else root(event.adapter, event.salt)
        size, tiers = self._block_size, 1 << event.tier
        hashes = block_hashes(tokens[first * size : len(event.hashes) * size], size, begin)
        new = event.hashes[first : first + len(hashes)]
        shown = _LEVELS[tiers] & (before.shown if before is not None else _EVERY)
        if before is not None and new:
            before.take(new[0])
        for name, own, child in zip(new, hashes, [*new[1:], None], strict=False):
            self._blocks[name] = _Block(own, parent, child, tiers, shown)
            parent = name
        return hashes, shown

    def _settle(self, name: EngineHash) -> list[_Turn]:
        """After its tiers have changed: what turns for it and for all that hangs on it, prefixes first."""
        turned, todo, blocks = [], [name], self._blocks
        while todo:
            block = blocks[todo.pop()]
            above = blocks[block.parent].shown if block.parent is not None else _EVERY
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
        """Forget a block that nothing holds and nothing hangs on, and what it was the last to hang on."""
        while name is not None and (block := self._blocks.get(name)) and not block.tiers and block.child is None:
            del self._blocks[name]
            if block.parent is not None:
                self._blocks[block.parent].clear_traceback(name)
            name = block.parent
