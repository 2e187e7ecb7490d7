"""Works out where media stand in an engine's blocks, for engines that tell of each token only which medium it is of.

Our names of blocks say how far into a medium each of its tokens is (``kv.prompt_keys``). Such engines do not say it, so
for a block that begins within a medium one needs to know where the block before it ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from triptych.kv.prompt_keys import MediumAt
from triptych.kv.translate import EngineHash

MAX_MEDIA = 1 << 16
"""The limit on media, and on blocks that end within one, that are remembered. A block that needs a forgotten one is not
found in the index."""
PLACEHOLDER = (1 << 32) - 1
"""The token id that the translator sees in the place of a medium's tokens, whatever the engine puts there. No text has
it."""


class _OpenMedium(NamedTuple):
    """A medium that goes on after the tokens seen so far."""

    content_hash: str
    offset: int
    """Index of its first token, counted from the first token of the block."""
    rows_left: int | None
    """Number of rows still to come. None if nobody said how many there are: it goes on up to the next text."""


class MediaOffsets:
    """Remembers the media of one engine. ``add`` every medium before the engine has it."""

    def __init__(self, block_size: int, max_media: int = MAX_MEDIA) -> None:
        self._block_size = block_size
        self._max = max_media
        self._rows: OrderedDict[str, int] = OrderedDict()
        self._open: OrderedDict[EngineHash, _OpenMedium] = OrderedDict()

    def add(self, content_hash: str, rows: int) -> str | None:
        """Remembers a medium whose embedding takes the places of ``rows`` tokens.

        Returns the content hash of a medium that is forgotten because of it.
        """
        self._rows[content_hash] = rows
        self._rows.move_to_end(content_hash)
        return self._rows.popitem(last=False)[0] if len(self._rows) > self._max else None

    def rows(self, content_hash: str) -> int | None:
        """Returns the number of rows of a medium that was added; None for any other."""
        return self._rows.get(content_hash)

    def ends_within_medium(self, name: EngineHash | None) -> bool:
        """Returns whether the block ``name`` ends within a medium."""
        return name in self._open

    def place(
        self, names: Sequence[EngineHash], parent: EngineHash | None, owners: Sequence[str]
    ) -> list[list[MediumAt]]:
        """Returns the media of each of the consecutive blocks ``names``, in the form of ``Stored.media``.

        ``owners`` has, for each token of all blocks, the content hash of its medium, or an empty string for text.
        """
        medium = self._open.get(parent) if parent is not None else None
        found = []
        for number, name in enumerate(names):
            start = number * self._block_size
            media, medium = self._place_in_block(owners[start : start + self._block_size], medium)
            found.append(media)
            if medium is not None:
                medium = medium._replace(offset=medium.offset - self._block_size)
                self._open[name] = medium
                self._open.move_to_end(name)
                if len(self._open) > self._max:
                    self._open.popitem(last=False)
        return found

    def _place_in_block(
        self, owners: Sequence[str], medium: _OpenMedium | None
    ) -> tuple[list[MediumAt], _OpenMedium | None]:
        """Returns the media of one block, and the medium that goes on after it.

        ``medium`` is the one that goes on from the block before.
        """
        media = [MediumAt(medium.offset, 0, medium.content_hash)] if medium is not None else []
        for place, owner in enumerate(owners):
            if not owner:
                if medium is not None and medium.rows_left is None:
                    medium = None
                continue
            if medium is None or medium.content_hash != owner:
                medium = _OpenMedium(owner, place, self._rows.get(owner))
                media.append(MediumAt(place, 0, owner))
            if medium.rows_left is not None:
                medium = medium._replace(rows_left=medium.rows_left - 1) if medium.rows_left > 1 else None
        return media, medium
