"""Where media stand in an engine's blocks, for engines that tell of each token only whose it is.

Our names of blocks say how far into a medium each of its tokens is (``kv.block_hash``). Such engines do not, so
that a block which begins within a medium needs to know where the one before it ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from triptych.kv.block_hash import MediumAt
from triptych.kv.translate import EngineHash

MOST = 1 << 16
"""Media, and blocks that end within one, that are remembered; what is forgotten is not found in the index."""


PLACEHOLDER = (1 << 32) - 1
"""For the translator: what stands where a medium's tokens are, whatever the engine puts there. No text has it."""


class _Open(NamedTuple):
    """A medium that goes on."""

    content_hash: str
    offset: int
    """Of its first token, from the first of the block."""
    left: int | None
    """Rows that are still to come. None: nobody said how many it has, and it goes up to the next text."""


class MediaPlaces:
    """For one engine. ``tell`` it of every medium before the engine has it."""

    def __init__(self, block_size: int, most: int = MOST) -> None:
        self._block_size = block_size
        self._max = most
        self._rows: OrderedDict[str, int] = OrderedDict()
        self._open: OrderedDict[EngineHash, _Open] = OrderedDict()

    def tell(self, content_hash: str, rows: int) -> str | None:
        """``rows``: tokens that its embedding takes the places of. Returns what is forgotten because of it."""
        self._rows[content_hash] = rows
        self._rows.move_to_end(content_hash)
        return self._rows.popitem(last=False)[0] if len(self._rows) > self._max else None

    def rows(self, content_hash: str) -> int | None:
        """As told; None: nobody has."""
        return self._rows.get(content_hash)

    def goes_on(self, name: EngineHash | None) -> bool:
        """Whether the block ``name`` ends within a medium."""
        return name in self._open

    def within(
        self, names: Sequence[EngineHash], parent: EngineHash | None, owners: Sequence[str]
    ) -> list[list[MediumAt]]:
        """Media of each of the consecutive blocks ``names``, as ``Stored`` wants them.

        ``owners``: for each token of them all the content hash of the medium that it belongs to; empty: text.
        """
        at = self._open.get(parent) if parent is not None else None
        found = []
        for number, name in enumerate(names):
            start = number * self._block_size
            media, at = self._walk(owners[start : start + self._block_size], at)
            found.append(media)
            if at is not None:
                at = at._replace(offset=at.offset - self._block_size)
                self._open[name] = at
                self._open.move_to_end(name)
                if len(self._open) > self._max:
                    self._open.popitem(last=False)
        return found

    def _walk(self, owners: Sequence[str], at: _Open | None) -> tuple[list[MediumAt], _Open | None]:
        """Media of one block, and the one that goes on after it."""
        media = [MediumAt(at.offset, 0, at.content_hash)] if at is not None else []
        for place, owner in enumerate(owners):
            if not owner:
                if at is not None and at.left is None:
                    at = None
                continue
            if at is None or at.content_hash != owner:
                at = _Open(owner, place, self._rows.get(owner))
                media.append(MediumAt(place, 0, owner))
            if at.left is not None:
                at = at._replace(left=at.left - 1) if at.left > 1 else None
        return media, at
