"""Describes how one worker's KV cache reaches another: what must be equal at both, and the order of their calls."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class HandOff(StrEnum):
    """The sequence of a prefill and a decode at two workers."""

    PREFILL_FIRST = "prefill-first"
    """The prefill is awaited. Its answer has a handle to the KV cache, which is passed on to the decode."""
    RENDEZVOUS = "rendezvous"
    """Both are called at once, with a room in which they meet. The decode waits there for the KV cache."""


class KvLayout(msgspec.Struct, frozen=True, kw_only=True):
    """The layout of a worker's KV cache. A default value stands for a property that the protocol converts by itself."""

    dtype: str = ""
    block_size: int = 0
    """The number of tokens in a block."""
    tensor_parallel: int = 0
    """The number of ranks that share the heads."""

    def fits(self, other: KvLayout) -> bool:
        """Tells whether all properties that both state are equal."""
        mine, others = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return all(ours == theirs or not ours or not theirs for ours, theirs in zip(mine, others, strict=True))


class KvLink(msgspec.Struct, frozen=True, kw_only=True):
    """Describes how a worker gives or takes a KV cache."""

    protocol: str
    """The name of the transfer protocol, such as ``vllm/NixlConnector``, with a version if versions are incompatible.
    """
    hand_off: HandOff = HandOff.PREFILL_FIRST
    layout: KvLayout = KvLayout()
    bootstrap: str = ""
    """``host:port`` at which takers meet this worker by rendezvous; empty if it gives nothing by rendezvous."""

    def gives_to(self, taker: KvLink) -> bool:
        """Tells whether a worker with the link ``taker`` can read what a worker with this link prefilled."""
        if self.hand_off is HandOff.RENDEZVOUS and not self.bootstrap:
            return False
        same = (self.protocol, self.hand_off) == (taker.protocol, taker.hand_off)
        return same and self.layout.fits(taker.layout)
