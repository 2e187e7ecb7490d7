"""Flags of the mock engine."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from triptych.contracts.kv_link import HandOff
from triptych.engines.args import flags_in
from triptych.engines.mock.tensors import EMBEDDING_DTYPE


class MockArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pace and faults of the mock engine."""

    encode_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Time to encode the media of one call."""
    prefill_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Time to the first token."""
    itl_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Time between tokens; 0 makes tokens as fast as they are taken."""
    pace: str = ""
    """A profile of ``triptych simulate``: all takes as long as at that engine, with a prefix cache and KV events;
    empty: the times above."""
    hand_off: HandOff = HandOff.PREFILL_FIRST
    """How the KV cache goes from prefill to decode: ``prefill-first`` by a handle that the frontend passes on,
    ``rendezvous`` in a room where both meet, called at once.
    """
    kv_tokens: Annotated[int, Meta(ge=0)] = 0
    """Room for KV cache with ``pace``, in tokens; 0: the profile's."""
    host_kv_tokens: Annotated[int, Meta(ge=0)] = 0
    """Room in host memory for what that evicts."""
    max_model_len: Annotated[int, Meta(gt=0)] = 0
    """Context length; 0 takes the checkpoint's."""
    block_size: Annotated[int, Meta(gt=0)] = 16
    embedding_dtype: str = EMBEDDING_DTYPE
    """The dtype of embeddings in the card. Anything but float32 is wrong, for tests."""
    start_s: Annotated[float, Meta(ge=0)] = 0.0
    """Time that the start takes. Its main thread waits in a loop that catches every exception, and beside it runs a
    process that ignores stop signals, both as with real engines."""
    crash_after_tokens: Annotated[int, Meta(ge=0)] = 0
    """Kill this process, as a segmentation fault would, once so many tokens were made; 0: never."""
    hang_after_tokens: Annotated[int, Meta(ge=0)] = 0
    """Block this process's event loop for ever once so many tokens were made; 0: never."""
    poison_token: Annotated[int, Meta(ge=-1)] = -1
    """A prompt with this token befalls the worker with ``poison`` before its first token; -1: there is none."""
    poison: Literal["crash", "hang"] = "crash"
    """``crash`` kills this process, ``hang`` blocks its event loop for ever."""


FLAGS = flags_in(MockArgs)
