"""Translates vLLM's stream of KV-cache events, which its engine process sends over ZMQ.

Messages are a topic, a sequence number of eight bytes and msgpack of a batch (``vllm/distributed/kv_events.py``). Lost
messages are requested again at the replay endpoint. If they are not kept there any more, the KV index lacks the blocks
that they were about.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from triptych.aio.leftovers import PrivateFolder
from triptych.contracts.kv_events import KvChange, Level
from triptych.kv.log import KvLog
from triptych.kv.prompt_keys import MediumAt
from triptych.kv.translate import Stored, Translator

log = logging.getLogger("triptych.kv_events")

REPLAY_TIMEOUT_MS = 2000
_TIERS = {"GPU": Level.DEVICE, "CPU": Level.HOST, "DISK": Level.DISK, "STORAGE": Level.DISK}
_LAST = (-1).to_bytes(8, "big", signed=True)
_Hash = int | bytes
_Keys = list[list[Any] | None] | None


class BlockStored(msgspec.Struct, tag_field="type"):
    block_hashes: list[_Hash]
    token_ids: list[int]
    block_size: int
    parent_block_hash: _Hash | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: _Keys = None
    group_idx: int | None = None


class BlockRemoved(msgspec.Struct, tag_field="type"):
    block_hashes: list[_Hash]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag_field="type"):
    pass


Event = BlockStored | BlockRemoved | AllBlocksCleared


class _Batch(msgspec.Struct, array_like=True):
    at_unix_s: float
    events: list[Event]


_BATCH = msgspec.msgpack.Decoder(_Batch)


class Events:
    """Applies events to a translator."""

    def __init__(self, block_size: int, placeholders: Collection[int]) -> None:
        self._block_size = block_size
        self.translator = Translator(block_size, placeholders)

    def apply(self, payload: bytes) -> Iterator[list[KvChange] | None]:
        """Yields the changes of one message, part by part; None stands for a snapshot. Raises msgspec.MsgspecError."""
        for event in _joined(_BATCH.decode(payload).events):
            if isinstance(event, AllBlocksCleared):
                self.translator.clear()
                yield None
            elif event.group_idx in (None, 0) and (tier := _TIERS.get((event.medium or "GPU").upper())) is not None:
                if isinstance(event, BlockRemoved):
                    yield self.translator.remove(event.block_hashes, tier)
                elif event.block_size in (0, self._block_size):
                    yield self.translator.store(_stored(event, tier))


def _joined(events: Iterable[Event]) -> list[Event]:
    """Joins successive removals from one tier into one event, because blocks are evicted one by one."""
    joined: list[Event] = []
    last: Event | None = None
    for event in events:
        if (
            isinstance(event, BlockRemoved)
            and isinstance(last, BlockRemoved)
            and event.medium == last.medium
            and event.group_idx == last.group_idx
        ):
            last.block_hashes += event.block_hashes
        else:
            joined.append(event)
            last = event
    return joined


def _stored(event: BlockStored, tier: Level) -> Stored:
    adapter = event.lora_name or ""
    keys = event.extra_keys or []
    first = keys[0] if keys and event.parent_block_hash is None else None
    others = [key for key in first or [] if isinstance(key, str)]
    salt = next((key for key in others if key != adapter), "")
    media = [
        [MediumAt(key[1], 0, key[0]) for key in of_block or [] if isinstance(key, list | tuple)]
        for of_block in (keys if any(keys) else ())
    ]
    return Stored(event.block_hashes, event.parent_block_hash, event.token_ids, media, adapter, salt, tier)


class Reporter:
    """Follows one engine, from its start to ``close``. Belongs to one event loop."""

    def __init__(self, channel: Channel, block_size: int, placeholders: Collection[int]) -> None:
        self._channel = channel
        self._events = Events(block_size, placeholders)
        self.log = KvLog(self._events.translator.snapshot)
        self._task = asyncio.create_task(self._run(), name="follow the engine's KV events")

    async def _run(self) -> None:
        async with aclosing(messages(self._channel.endpoint, self._channel.replay_endpoint)) as payloads:
            async for payload in payloads:
                try:
                    self._tell(payload)
                except msgspec.MsgspecError as error:
                    log.error("the engine's KV events are of another version, and are not followed: %s", error)
                    return

    def _tell(self, payload: bytes) -> None:
        for changes in self._events.apply(payload):
            if changes is None:
                self.log.reset()
            else:
                self.log.publish(changes)

    def cleared(self) -> None:
        """Reports at once that the cache is empty. vLLM does so only with its next step, at the next request."""
        self._events.translator.clear()
        self.log.reset()

    async def close(self) -> None:
        """Ends the reports. May be called twice."""
        self._task.cancel()
        await asyncio.wait({self._task})
        self.log.close()


class Channel:
    """The sockets by which an engine reports its KV cache, in a folder that only this user can read."""

    def __init__(self) -> None:
        self._folder = PrivateFolder("triptych-kv-")
        self.endpoint, self.replay_endpoint = (f"ipc://{self._folder.path}/{name}" for name in ("events", "replay"))

    def close(self) -> None:
        """Removes the folder. May be called twice."""
        self._folder.close()


async def messages(endpoint: str, replay_endpoint: str) -> AsyncGenerator[bytes, None]:
    """Yields payloads in the publisher's order, each once, until it is closed."""
    async with AsyncExitStack() as stack:
        context = stack.enter_context(zmq.asyncio.Context())
        source = stack.enter_context(context.socket(zmq.SUB))
        source.set(zmq.LINGER, 0)
        source.set(zmq.RCVHWM, 0)
        source.connect(endpoint)
        source.subscribe(b"")
        expected = 0
        while True:
            _, number, payload = await source.recv_multipart()
            sequence = int.from_bytes(number, "big")
            if sequence > expected:
                async for missed in _replayed(context, replay_endpoint, expected, sequence):
                    yield missed
            if sequence >= expected:
                yield payload
            expected = max(expected, sequence + 1)


async def _replayed(context: zmq.asyncio.Context, endpoint: str, begin: int, end: int) -> AsyncIterator[bytes]:
    """Yields the messages from ``begin`` to before ``end``, as far as the publisher still has them."""
    with context.socket(zmq.DEALER) as source:
        source.set(zmq.LINGER, 0)
        source.connect(endpoint)
        await source.send_multipart([b"", begin.to_bytes(8, "big")])
        found = 0
        while await source.poll(REPLAY_TIMEOUT_MS):
            *_, number, payload = await source.recv_multipart()
            if number == _LAST or not begin <= (sequence := int.from_bytes(number, "big")) < end:
                break
            found += 1
            yield payload
            if sequence == end - 1:
                break
        if found < end - begin:
            log.warning(
                "%d of the engine's KV events were lost; its cached blocks are known in part", end - begin - found
            )
