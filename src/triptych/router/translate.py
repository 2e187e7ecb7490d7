"""From an engine's block events, in its own hashes, to ours; done beside the engine, once for all routers.

It also keeps the promise that an index relies on: a block is said to be held only while its whole prefix is. Engines
may evict a block and keep what hangs on it, which nothing can use then, until the block is computed again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from triptych.contracts.kv_events import KvChange, Level, packed
from triptych.router.block_hash import MediumAt, block_hashes, named_within, root

EngineHash = int | bytes | str


@dataclass(frozen=True, slots=True)
class Stored:
    """Consecutive blocks that an engine has put into one of its tiers."""

    hashes: Sequence[EngineHash]
    parent: EngineHash | None
    """Of the first; None: it begins a prompt."""
    token_ids: Sequence[int]
    """Of all of them; empty for a copy of blocks that are known already."""
    media: Sequence[Sequence[MediumAt]] = ()
    """Of each block; offsets count from its first token, and are negative for what began before."""
    adapter: str = ""
    salt: str = ""
    tier: Level = Level.DEVICE


class _Block:
    __slots__ = ("child", "name", "others", "own", "parent", "shown", "tiers")

    def __init__(self, name: EngineHash, own: int, parent: _Block | None) -> None:
        self.name = name
        self.own = own
        self.parent = parent
        self.child: _Block | None = None
        """The first that hangs on it. Most have one: a set for each block would take as long as all the rest."""
        self.others: set[_Block] | None = None
        self.tiers = 0
        """Bits of the tiers that hold it."""
        self.shown = 0
        """Bits of the levels at which it was reported."""

    def hang_on(self, parent: _Block) -> None:
        if parent.child is None:
            parent.child = self
        elif parent.others is None:
            parent.others = {self}
        else:
            parent.others.add(self)

    def let_go(self, parent: _Block) -> None:
        if parent.child is self:
            parent.child = parent.others.pop() if parent.others else None
        elif parent.others is not None:
            parent.others.discard(self)


_HELD = [(2 << level) - 1 for level in Level]
"""The tiers that count at each level."""
_EVERY = _HELD[-1]


class Translator:
    """One engine's blocks. ``store`` and ``remove`` return what to report, in order; None: a snapshot instead.

    Changes are told of each level down to the lowest tier that something was stored in: most engines have one only.
    """

    def __init__(self, block_size: int, placeholders: Collection[int] = ()) -> None:
        """``placeholders``: ids that stand for media in expanded prompts."""
        self._block_size = block_size
        self._placeholders = placeholders
        self._lowest = Level.DEVICE
        self._blocks: dict[EngineHash, _Block] = {}
        self.unknown = 0
        """Blocks passed over because they, or what they hang on, were never reported."""

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, name: EngineHash) -> bool:
        return name in self._blocks

    def store(self, event: Stored) -> list[KvChange] | None:
        parent = self._blocks.get(event.parent) if event.parent is not None else None
        if event.token_ids and parent is None and event.parent is not None:
            self.unknown += len(event.hashes)
            return []
        blocks = self._added(event, parent) if event.token_ids else self._known(event.hashes)
        bit = 1 << event.tier
        for block in blocks:
            block.tiers |= bit
        if event.tier > self._lowest:
            self._deepen(event.tier)
            return None
        return self._changes(event.tier, blocks, stored=True)

    def remove(self, hashes: Iterable[EngineHash], tier: Level | None = Level.DEVICE) -> list[KvChange]:
        """``tier``: None for all of them."""
        blocks, gone = self._known(hashes), _EVERY if tier is None else 1 << tier
        for block in blocks:
            block.tiers &= ~gone
        changes = self._changes(tier or Level.DEVICE, blocks, stored=False)
        for block in blocks:
            self._prune(block)
        return changes

    def _deepen(self, lowest: Level) -> None:
        """Tell of the levels down to ``lowest`` too."""
        for level in range(self._lowest + 1, lowest + 1):
            _shown(list(self._blocks.values()), level)
        self._lowest = lowest

    def clear(self) -> None:
        """All is gone, in every tier."""
        self._blocks.clear()

    def snapshot(self) -> list[KvChange]:
        """All that is held now, as if just stored."""
        changes = []
        for level in range(self._lowest + 1):
            shown = [block.own for block in self._blocks.values() if block.shown >> level & 1]
            changes.append(KvChange(level, True, packed(shown)))
        return [change for change in changes if change.hashes]

    def _known(self, hashes: Iterable[EngineHash]) -> list[_Block]:
        found = [self._blocks.get(name) for name in hashes]
        self.unknown += found.count(None)
        return [block for block in found if block is not None]

    def _added(self, event: Stored, parent: _Block | None) -> list[_Block]:
        begin = parent.own if parent is not None else root(event.adapter, event.salt)
        tokens = named_within(event.token_ids, event.media, self._block_size, self._placeholders)
        blocks, known = [], self._blocks
        for name, own in zip(event.hashes, block_hashes(tokens, self._block_size, begin), strict=False):
            block = known.get(name)
            if block is None:
                block = known[name] = _Block(name, own, parent)
                if parent is not None:
                    block.hang_on(parent)
            blocks.append(block)
            parent = block
        return blocks

    def _changes(self, tier: Level, blocks: list[_Block], *, stored: bool) -> list[KvChange]:
        """At each level that ``tier`` counts for."""
        follow = _shown if stored else _hidden
        found = [(level, follow(blocks, level)) for level in range(tier, self._lowest + 1)]
        return [KvChange(level, stored, packed(hashes)) for level, hashes in found if hashes]

    def _prune(self, block: _Block) -> None:
        """Forget a block that nothing holds and nothing hangs on, and what it was the last to hang on."""
        at: _Block | None = block
        while at is not None and not at.tiers and at.child is None:
            if self._blocks.pop(at.name, None) is None:
                return
            if at.parent is not None:
                at.let_go(at.parent)
            at = at.parent


def _shown(blocks: list[_Block], level: int) -> list[int]:
    """Those that can be used from now on, and what can because of them: prefixes first."""
    bit, held = 1 << level, _HELD[level]
    out: list[int] = []
    for block in blocks:
        if block.shown & bit:
            continue
        todo = [block]
        while todo:
            one = todo.pop()
            if one.shown & bit or not one.tiers & held or not (one.parent is None or one.parent.shown & bit):
                continue
            one.shown |= bit
            out.append(one.own)
            if one.child is not None:
                todo.append(one.child)
                if one.others:
                    todo += one.others
    return out


def _hidden(blocks: list[_Block], level: int) -> list[int]:
    """Those that can be used no more, and what cannot because of them: prefixes last."""
    bit, held = 1 << level, _HELD[level]
    out: list[int] = []
    for block in blocks:
        if not block.shown & bit or block.tiers & held:
            continue
        found, todo = [], [block]
        while todo:
            one = todo.pop()
            if one.shown & bit:
                one.shown &= ~bit
                found.append(one.own)
                if one.child is not None:
                    todo.append(one.child)
                    if one.others:
                        todo += one.others
        out += reversed(found)
    return out
