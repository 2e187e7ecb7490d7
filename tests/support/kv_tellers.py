"""What engines would say of one and the same story of their KV caches, each in its own format; and what is true of it.

Names of blocks are made up: an engine's own hashes stand for a prompt up to a block, and nothing else is known of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from triptych.contracts.kv_events import KvChange, Level, unpacked
from triptych.engines.sglang import kv_events as sglang
from triptych.engines.trtllm import kv_events as trtllm
from triptych.engines.vllm import kv_events as vllm
from triptych.kv.block_hash import block_hashes, root
from triptych.kv.prompt_keys import MediumAt, prompt_keys

SIZE = 4
PAD = 90
"""The placeholder in prompts; all other ids are texts."""
VOCABULARY = 100
ADAPTERS = {7: "fox"}


@dataclass(frozen=True)
class Asked:
    """A prompt, expanded."""

    token_ids: Sequence[int]
    media: Sequence[MediumAt] = ()
    adapter: str = ""
    salt: str = ""

    @property
    def blocks(self) -> int:
        return len(self.token_ids) // SIZE

    @property
    def own(self) -> list[int]:
        """Our names of its blocks, as frontends make them."""
        return block_hashes(prompt_keys(self.token_ids, self.media, {PAD}), SIZE, root(self.adapter, self.salt))

    def within(self, block: int) -> list[MediumAt]:
        """Media of which there are tokens in a block, from the block's first token."""
        first = block * SIZE
        return [
            MediumAt(one.offset - first, one.tokens, one.content_hash)
            for one in self.media
            if one.offset < first + SIZE and one.offset + one.tokens > first
        ]

    def rows(self, medium: MediumAt, end: int) -> int:
        """Placeholders of a medium before the prompt's token ``end``."""
        return list(self.token_ids[medium.offset : max(medium.offset, end)]).count(PAD)

    def engine_name(self, block: int) -> int:
        """An engine's hash of a block, and of all that is before it: 64 bits with a sign."""
        end = (block + 1) * SIZE
        media = [one for one in self.media if one.offset < end]
        what = repr((self.token_ids[:end], media, self.adapter, self.salt)).encode()
        return int.from_bytes(hashlib.sha256(what).digest()[:8], "big", signed=True)

    def names(self, blocks: Iterable[int]) -> list[int]:
        return [self.engine_name(block) for block in blocks]


class Teller(Protocol):
    """One engine: each call is what it says of that, already heard by our side of it."""

    def asked(self, prompt: Asked) -> None:
        """A request goes to the engine."""

    def stored(self, prompt: Asked, blocks: range, tier: Level = Level.DEVICE) -> None: ...

    def removed(self, prompt: Asked, blocks: Sequence[int], tier: Level = Level.DEVICE) -> None: ...

    def offloaded(self, prompt: Asked, blocks: range) -> None:
        """From the device to host memory."""

    def cleared(self) -> None: ...


class Index:
    """What a router knows of one worker by what it is told."""

    def __init__(self) -> None:
        self.held: dict[int, set[int]] = {}

    def hear(self, changes: Iterable[KvChange]) -> None:
        for change in changes:
            held = self.held.setdefault(change.level, set())
            for one in unpacked(change.hashes):
                assert (one in held) != change.stored, "told twice"
                (held.add if change.stored else held.remove)(one)

    def matched(self, prompt: Asked, level: Level) -> int:
        held = self.held.get(level, set())
        return next((at for at, one in enumerate(prompt.own) if one not in held), prompt.blocks)


class _Told:
    """Our side: a decoder, and the index that it feeds."""

    def __init__(self, events: Any) -> None:
        self.events = events
        self.index = Index()

    def hear(self, message: Any) -> None:
        for changes in self.events.apply(message):
            if changes is None:
                self.index.held = {}
            self.index.hear(self.events.translator.snapshot() if changes is None else changes)

    def asked(self, prompt: Asked) -> None:
        for one in prompt.media:
            if hasattr(self.events, "tell"):
                self.events.tell(one.content_hash, prompt.rows(one, one.offset + one.tokens))


class Vllm(_Told):
    def __init__(self) -> None:
        super().__init__(vllm.Events(SIZE, {PAD}))

    def _say(self, **event: Any) -> None:
        self.hear(msgspec.msgpack.encode([1.5, [event], 0]))

    def stored(self, prompt: Asked, blocks: range, tier: Level = Level.DEVICE) -> None:
        keys = []
        for block in blocks:
            of_block: list[Any] = [(one.content_hash, one.offset) for one in prompt.within(block)]
            of_block += [prompt.adapter] if prompt.adapter else []
            of_block += [prompt.salt] if prompt.salt and not block else []
            keys.append(of_block or None)
        self._say(
            type="BlockStored",
            block_hashes=prompt.names(blocks),
            parent_block_hash=prompt.engine_name(blocks.start - 1) if blocks.start else None,
            token_ids=list(prompt.token_ids[blocks.start * SIZE : blocks.stop * SIZE]),
            block_size=SIZE,
            lora_id=7 if prompt.adapter else None,
            lora_name=prompt.adapter or None,
            medium=("GPU", "CPU", "STORAGE")[tier],
            extra_keys=keys if any(keys) else None,
            group_idx=0,
        )

    def removed(self, prompt: Asked, blocks: Sequence[int], tier: Level = Level.DEVICE) -> None:
        medium = ("GPU", "CPU", "STORAGE")[tier]
        self._say(type="BlockRemoved", block_hashes=prompt.names(blocks), medium=medium, group_idx=0)

    def offloaded(self, prompt: Asked, blocks: range) -> None:
        self.stored(prompt, blocks, Level.HOST)
        self.removed(prompt, blocks)

    def cleared(self) -> None:
        self._say(type="AllBlocksCleared")


class Sglang(_Told):
    TIERS = ("GPU", "CPU_PINNED", "DISK")

    def __init__(self) -> None:
        super().__init__(sglang.Events(SIZE))

    def _say(self, *events: Any) -> None:
        self.hear(msgspec.msgpack.encode([1.5, events, 0]))

    def padded(self, prompt: Asked) -> list[int]:
        """Each run of a medium's placeholders begins with the first of the ids that stand for it."""
        ids, turn = list(prompt.token_ids), 0
        for medium in prompt.media:
            pads = sglang.pads(medium.content_hash)
            for place in range(medium.offset, medium.offset + medium.tokens):
                turn = turn + 1 if place > medium.offset and prompt.token_ids[place - 1] == PAD else 0
                if prompt.token_ids[place] == PAD:
                    ids[place] = pads[turn % 4]
        return ids

    def stored(self, prompt: Asked, blocks: range, tier: Level = Level.DEVICE) -> None:
        ids = self.padded(prompt)
        events = [
            {
                "type": "BlockStored",
                "block_hashes": [prompt.engine_name(block)],
                "parent_block_hash": prompt.engine_name(block - 1) if block else None,
                "token_ids": ids[block * SIZE : (block + 1) * SIZE],
                "block_size": SIZE,
                "lora_id": None,
                "medium": self.TIERS[tier],
                **({"lora_name": prompt.adapter} if prompt.adapter else {}),
                **({"cache_salt": prompt.salt} if prompt.salt else {}),
            }
            for block in blocks
        ]
        self._say(*events)

    def removed(self, prompt: Asked, blocks: Sequence[int], tier: Level = Level.DEVICE) -> None:
        self._say({"type": "BlockRemoved", "block_hashes": prompt.names(blocks), "medium": self.TIERS[tier]})

    def offloaded(self, prompt: Asked, blocks: range) -> None:
        self.stored(prompt, blocks, Level.HOST)
        self.removed(prompt, blocks)

    def cleared(self) -> None:
        self._say({"type": "AllBlocksCleared"})


class Trtllm(_Told):
    """A medium has a key in a block for each run of its placeholders there."""

    def __init__(self) -> None:
        super().__init__(trtllm.Events(SIZE, VOCABULARY, {PAD}, ADAPTERS))
        self._said = 0
        self.cleared()

    def say(self, data: dict[str, Any], window: int = 4096) -> None:
        self.hear([{"event_id": self._said, "data": data, "window_size": window, "attention_dp_rank": 0}])
        self._said += 1

    def block(self, prompt: Asked, block: int, tier: Level) -> dict[str, Any]:
        first = block * SIZE
        ids = prompt.token_ids[first : first + SIZE]
        keys = []
        for medium in prompt.media:
            for place in range(first, first + SIZE):
                inside = medium.offset <= place < medium.offset + medium.tokens and prompt.token_ids[place] == PAD
                if inside and (place in (first, medium.offset) or prompt.token_ids[place - 1] != PAD):
                    rows = prompt.rows(medium, place)
                    keys.append({"type": "mm_key", "hash": medium.content_hash, "start_offset": rows})
        return {
            "type": "stored_block",
            "block_hash": prompt.engine_name(block) % 2**64,
            "tokens": [
                {"type": "unique_token", "token_id": VOCABULARY + 1 if one == PAD else one, "token_extra_id": 0}
                for one in ids
            ],
            "lora_id": next((number for number, name in ADAPTERS.items() if name == prompt.adapter), None),
            "cache_level": int(tier),
            "priority": 35,
            "mm_keys": keys,
            "cache_salt": prompt.salt or None,
        }

    def stored(self, prompt: Asked, blocks: range, tier: Level = Level.DEVICE) -> None:
        parent = prompt.engine_name(blocks.start - 1) % 2**64 if blocks.start else None
        told = [self.block(prompt, block, tier) for block in blocks]
        self.say({"type": "stored", "parent_hash": parent, "blocks": told})

    def removed(self, prompt: Asked, blocks: Sequence[int], tier: Level = Level.DEVICE) -> None:
        names = [name % 2**64 for name in prompt.names(blocks)]
        self.say({"type": "removed", "block_hashes": names})

    def offloaded(self, prompt: Asked, blocks: range) -> None:
        for name in prompt.names(blocks):
            level = {"type": "event_diff", "old_value": 0, "new_value": 1}
            self.say({"type": "updated", "block_hash": name % 2**64, "cache_level": level, "priority": None})

    def cleared(self) -> None:
        self.say({"type": "created", "num_blocks_per_cache_level": [64, 32]})


class Truth:
    """The same by rule, without any format: a level holds what its tiers hold together with all that is before it."""

    def __init__(self) -> None:
        self._tiers: list[set[tuple[int, ...]]] = [set() for _ in Level]
        """Blocks as our names of all blocks up to them."""

    def asked(self, prompt: Asked) -> None:
        pass

    def stored(self, prompt: Asked, blocks: range, tier: Level = Level.DEVICE) -> None:
        self._tiers[tier] |= {tuple(prompt.own[: block + 1]) for block in blocks}

    def removed(self, prompt: Asked, blocks: Sequence[int], tier: Level = Level.DEVICE) -> None:
        self._tiers[tier] -= {tuple(prompt.own[: block + 1]) for block in blocks}

    def offloaded(self, prompt: Asked, blocks: range) -> None:
        self.stored(prompt, blocks, Level.HOST)
        self.removed(prompt, blocks)

    def cleared(self) -> None:
        self._tiers = [set() for _ in Level]

    def held(self, level: Level) -> set[int]:
        here = set().union(*self._tiers[: level + 1])
        return {one[-1] for one in here if all(one[:end] in here for end in range(1, len(one)))}
