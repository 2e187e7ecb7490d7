"""Translates TensorRT-LLM's KV-cache events, as ``LLM.get_kv_cache_events`` returns them.

Written from its public sources up to 1.3 (``KVCacheEventSerializer`` in ``tensorrt_llm/_utils.py``, ``blockKey.cpp``),
for its first cache manager; never run against TensorRT-LLM itself. A block's ``mm_keys`` name a medium by the uuid in
the request (``multi_modal_uuids``, which must contain our ``content_hash``), otherwise by a hash of TensorRT-LLM's own,
which nobody can look up. They do not say where in the block the medium is. That follows from its placeholders, which
are ids that the model reserves for them, or ids beyond the vocabulary.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

import msgspec

from triptych.contracts.kv_events import KvChange, Level
from triptych.kv.media_offsets import MAX_MEDIA, PLACEHOLDER, MediaOffsets
from triptych.kv.translate import Stored, Translator

log = logging.getLogger("triptych.kv_events")

_Hash = int | str


class Token(msgspec.Struct):
    token_id: int
    token_extra_id: int = 0
    """The id of a prompt table, whose content is not known; 0 if there is none."""


class MmKey(msgspec.Struct):
    hash: str
    start_offset: int = 0
    """The place of the block's first token in the medium, in rows."""


class Block(msgspec.Struct):
    block_hash: _Hash
    tokens: list[Token]
    lora_id: int | None = None
    cache_level: int = 0
    mm_keys: list[MmKey] = []
    cache_salt: str | None = None


class Created(msgspec.Struct, tag="created"):
    pass


class StoredBlocks(msgspec.Struct, tag="stored"):
    blocks: list[Block]
    parent_hash: _Hash | None = None
    lora_name: str | None = None


class Removed(msgspec.Struct, tag="removed"):
    block_hashes: list[_Hash]


class Moved(msgspec.Struct):
    new_value: int


class Updated(msgspec.Struct, tag="updated"):
    block_hash: _Hash
    cache_level: Moved | None = None
    """The new level; None if something else has changed, such as the priority."""


class Event(msgspec.Struct):
    event_id: int
    data: Created | StoredBlocks | Removed | Updated
    window_size: int = 0


class Events:
    """Applies events to a translator."""

    def __init__(
        self,
        block_size: int,
        vocabulary: int,
        placeholders: Collection[int] = (),
        adapters: Mapping[int, str] = MappingProxyType({}),
        max_media: int = MAX_MEDIA,
    ) -> None:
        """Creates an empty translator. Token ids from ``vocabulary`` on stand for media, as ``placeholders`` do.

        ``adapters`` maps a lora_id to the adapter's name.
        """
        self._block_size = block_size
        self._vocabulary = vocabulary
        self._placeholders = placeholders
        self._adapters = adapters
        self.translator = Translator(block_size, {PLACEHOLDER})
        self._offsets = MediaOffsets(block_size, max_media)
        self._next = 0
        self._window = 0
        """The widest attention window so far; only its cache holds whole prompts."""

    def tell(self, content_hash: str, rows: int) -> None:
        """Takes note of a medium before its request goes to the engine.

        ``rows`` is the number of tokens of its embedding.
        """
        self._offsets.add(content_hash, rows)

    def apply(self, events: Sequence[Mapping[str, Any]]) -> Iterator[list[KvChange] | None]:
        """Yields the changes of ``events`` in order; None stands for a snapshot. Raises msgspec.ValidationError."""
        for event in msgspec.convert(events, list[Event]):
            data = event.data
            if event.event_id > self._next:
                log.warning("%d KV events were lost; cached blocks are known in part", event.event_id - self._next)
            self._next = event.event_id + 1
            if isinstance(data, Created):
                self._window = max(self._window, event.window_size)
                self.translator.clear()
                yield None
            elif event.window_size < self._window:
                continue
            elif isinstance(data, Removed):
                yield self.translator.remove(data.block_hashes, None)
            elif isinstance(data, Updated):
                yield from self._moved(data)
            else:
                for stored in self._stored(data):
                    yield self.translator.store(stored)

    def _moved(self, data: Updated) -> Iterator[list[KvChange] | None]:
        """Moves a block from tier to tier; a block is in one tier at a time."""
        if data.cache_level is None or data.block_hash not in self.translator:
            return
        tier = Level(min(data.cache_level.new_value, Level.DISK))
        yield self.translator.store(Stored([data.block_hash], None, (), tier=tier))
        for other in Level:
            if other is not tier:
                yield self.translator.remove([data.block_hash], other)

    def _stored(self, data: StoredBlocks) -> Iterator[Stored]:
        """Stores consecutive blocks of one tier each, up to the first that has no name of ours."""
        whole, owners = [], []
        for block in data.blocks:
            owned = self._owners(block)
            if owned is None or self._adapter(data, block) is None:
                break
            whole.append(block)
            owners += owned
        self.translator.unknown += len(data.blocks) - len(whole)
        media = self._offsets.place([block.block_hash for block in whole], data.parent_hash, owners)
        parent, start = data.parent_hash, 0
        for level, together in groupby(whole, lambda block: block.cache_level):
            blocks = list(together)
            end = start + len(blocks)
            ids = [token.token_id for block in blocks for token in block.tokens]
            mine = owners[start * self._block_size : end * self._block_size]
            yield Stored(
                [block.block_hash for block in blocks],
                parent,
                [PLACEHOLDER if owner else token_id for token_id, owner in zip(ids, mine, strict=True)],
                media[start:end],
                self._adapter(data, blocks[0]) or "",
                blocks[0].cache_salt or "",
                Level(min(level, Level.DISK)),
            )
            parent, start = blocks[-1].block_hash, end

    def _adapter(self, data: StoredBlocks, block: Block) -> str | None:
        """Returns the adapter's name: empty for the model itself, None if it is unknown."""
        if data.lora_name is not None or block.lora_id is None:
            return data.lora_name or ""
        return self._adapters.get(block.lora_id)

    def _owners(self, block: Block) -> list[str] | None:
        """Returns the medium of each token, empty for texts. None if it is not known, or the block is not full.

        Placeholders belong to the block's media in order, and to each medium as many as it still has rows.
        """
        if len(block.tokens) != self._block_size or any(token.token_extra_id for token in block.tokens):
            return None
        owners: list[str] = []
        keys = deque(_first_keys(block.mm_keys))
        left = 0
        for token in block.tokens:
            if token.token_id < self._vocabulary and token.token_id not in self._placeholders:
                owners.append("")
                continue
            if left <= 0:
                if not keys:
                    return None
                key = keys.popleft()
                rows = self._offsets.rows(key.hash)
                left = (self._block_size if rows is None else rows) - key.start_offset
            owners.append(key.hash)
            left -= 1
        return owners


def _first_keys(keys: Sequence[MmKey]) -> Iterator[MmKey]:
    """Yields the first key of each medium. A medium that texts divide has a key for each of its parts."""
    before: MmKey | None = None
    for key in keys:
        if before is None or key.hash != before.hash or not key.start_offset:
            yield key
        before = key
