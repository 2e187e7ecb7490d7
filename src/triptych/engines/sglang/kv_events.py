"""Translates SGLang's KV-cache events. Checked with messages of SGLang 0.5.23.

Messages are framed as those of vLLM (a topic, a sequence number, msgpack of a batch), and their events are nearly the
same (``sglang/srt/disaggregation/kv_events.py``). A block is a page of SGLang's cache (``--page-size``). A medium's
tokens are replaced by numbers beyond any vocabulary, made of a hash of 64 bits (``MultimodalDataItem.set_hash`` in
``managers/schedule_batch.py``): four numbers in turn, and each run of them begins with the first. SGLang takes the hash
from the request (``mm_hashes``), which must contain our ``content_hash``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from triptych.contracts.kv_events import KvChange, Level
from triptych.kv.media_offsets import MAX_MEDIA, PLACEHOLDER, MediaOffsets
from triptych.kv.translate import Stored, Translator

FIRST_PAD = 1_000_000
"""Token ids from here on stand for media (``MM_PAD_SHIFT_VALUE``)."""
_PAD_TAG = b"sglang-mm-wide-pad-v1"
_PAD_BYTES = 32
_PAD_MASK = (1 << 62) - 1
_HASH_MASK = (1 << 64) - 1
_TIERS = {"GPU": Level.DEVICE, "CPU_PINNED": Level.HOST, "DISK": Level.DISK, "EXTERNAL": Level.DISK}


class BlockStored(msgspec.Struct, tag=True):
    block_hashes: list[int]
    token_ids: list[int | tuple[int, int]]
    """Token ids; with speculative decoding they may be pairs of a token and the next one."""
    block_size: int
    parent_block_hash: int | None = None
    medium: str | None = None
    cache_salt: str | None = None
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, tag=True):
    block_hashes: list[int]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, tag=True):
    pass


Event = BlockStored | BlockRemoved | AllBlocksCleared


class _Batch(msgspec.Struct, array_like=True):
    at_unix_s: float
    events: list[Event]


_BATCH = msgspec.msgpack.Decoder(_Batch)


def pads(content_hash: str) -> tuple[int, ...]:
    """Returns the token ids that stand for a medium whose ``mm_hashes`` entry is ``content_hash``, in order."""
    name = (int(content_hash, 16) & _HASH_MASK).to_bytes(8, "big")
    digest = hashlib.sha256(_PAD_TAG + name).digest()
    words = (int.from_bytes(digest[at : at + 8], "big") for at in range(0, _PAD_BYTES, 8))
    return tuple(FIRST_PAD + (word & _PAD_MASK) for word in words)


class Events:
    """Applies events to a translator."""

    def __init__(self, block_size: int, max_media: int = MAX_MEDIA) -> None:
        self._block_size = block_size
        self.translator = Translator(block_size, {PLACEHOLDER})
        self._offsets = MediaOffsets(block_size, max_media)
        self._owners: dict[int, str] = {}
        """Content hashes, by the token ids that stand for them."""

    def tell(self, content_hash: str, rows: int) -> None:
        """Takes note of a medium before its request goes to the engine.

        ``rows`` is the number of tokens of its embedding.
        """
        self._owners.update(dict.fromkeys(pads(content_hash), content_hash))
        if (forgotten := self._offsets.add(content_hash, rows)) is not None:
            for pad in pads(forgotten):
                self._owners.pop(pad, None)

    def apply(self, payload: bytes) -> Iterator[list[KvChange] | None]:
        """Returns the changes of one message, event by event; None stands for a snapshot.

        Raises msgspec.MsgspecError.
        """
        for event in _BATCH.decode(payload).events:
            if isinstance(event, AllBlocksCleared):
                self.translator.clear()
                yield None
            elif (tier := _TIERS.get(event.medium or "GPU")) is None:
                continue
            elif isinstance(event, BlockRemoved):
                yield self.translator.remove(event.block_hashes, tier)
            elif event.block_size == self._block_size:
                yield self.translator.store(self._stored(event, tier))

    def _stored(self, event: BlockStored, tier: Level) -> Stored:
        names, parent = event.block_hashes, event.parent_block_hash
        if all(name in self.translator for name in names):
            return Stored(names, parent, (), tier=tier)
        tokens = [token if isinstance(token, int) else token[0] for token in event.token_ids]
        adapter, salt = event.lora_name or "", event.cache_salt or ""
        if max(tokens, default=0) < FIRST_PAD and not self._offsets.ends_within_medium(parent):
            return Stored(names, parent, tokens, (), adapter, salt, tier)
        foreign = next(
            (at for at, token in enumerate(tokens) if token >= FIRST_PAD and token not in self._owners), None
        )
        whole = len(names) if foreign is None else foreign // self._block_size
        self.translator.unknown += len(names) - whole
        names, tokens = names[:whole], tokens[: whole * self._block_size]
        owners = [self._owners[token] if token >= FIRST_PAD else "" for token in tokens]
        media = self._offsets.place(names, parent, owners)
        plain = [PLACEHOLDER if owner else token for token, owner in zip(tokens, owners, strict=True)]
        return Stored(names, parent, plain, media, adapter, salt, tier)
