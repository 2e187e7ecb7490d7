"""Defines the request to a worker that prefills or decodes."""

from __future__ import annotations

from typing import Literal

import msgspec

from triptych.contracts.media import Medium
from triptych.contracts.tokens import TokenIds

GENERATE = "generate"
"""The endpoint of workers whose span ends in ``d``. It takes a GenerateRequest and answers TokenDeltas."""


class Guided(msgspec.Struct, frozen=True):
    """A grammar that the output must follow."""

    kind: Literal["json_object", "json_schema"]
    schema: str | None = None
    """The JSON schema as JSON text, for ``json_schema``."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The parameters of drawing tokens. Names and meanings are those that OpenAI and vLLM share."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 considers every token."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """The number of most likely tokens whose logprobs are returned besides the chosen token's; None for no logprobs."""
    logit_bias: dict[int, float] | None = None
    guided: Guided | None = None
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that may be drawn; empty if all may be."""

    @property
    def needs_history(self) -> bool:
        """Whether drawing depends on which tokens of the text belong to the answer.

        Then no other engine can continue the answer, because its earlier tokens would be prompt there.

        Presence and frequency penalties count the answer alone, and a grammar starts with it. Repetition penalty
        counts the prompt too, ``min_tokens`` and ``max_tokens`` can be lowered; all else looks at one position.
        """
        return bool(self.presence_penalty or self.frequency_penalty or self.guided is not None)


class KvHandle(msgspec.Struct, frozen=True, kw_only=True, tag="handle"):
    """The KV cache of a prefilled prompt, waiting at the worker that made it."""

    protocol: str
    """The value of ``KvLink.protocol``; only an engine that speaks it can read the cache."""
    request_id: str
    """The prefill's id at its owner. It names the cache when the cache is released unread."""
    params: bytes
    """The engine's own parameters as msgpack; nothing else reads them."""


class KvRoom(msgspec.Struct, frozen=True, kw_only=True, tag="room"):
    """The room in which a prefill and a decode that run at once meet, to hand a KV cache over. Made for one attempt."""

    bootstrap: str
    """``host:port`` of ``KvLink.bootstrap`` at the worker that prefills."""
    number: int
    """A random number of 63 bits. Whoever knows it may take the cache."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request to a worker that hosts ``p`` or ``d``: to prefill a prompt, or to generate tokens."""

    id: str
    model: str
    token_ids: TokenIds
    """Prompt with exactly one placeholder token for each medium, in order."""
    sampling: Sampling
    media: list[Medium] = []
    priority: int = 0
    prompt_tokens: int = 0
    """Length of the prompt with every placeholder expanded."""
    generated_ids: list[int] = []
    """Tokens of the answer that other workers made and the client has got; the answer goes on after them, and
    ``sampling`` (``max_tokens``, ``min_tokens``) counts them."""
    kv: KvHandle | KvRoom | None = None
    """The source of the KV cache, for a decode whose prompt is prefilled elsewhere.

    A handle names a finished cache of the prompt, without ``generated_ids``. The cache of a room is waited for, and
    covers ``generated_ids`` too.
    """
    give: KvRoom | None = None
    """The room in which the KV cache of a prefill is handed over before the prefill is answered.

    If None, the answer has a handle.
    """
    frontend_id: str = ""
    """The id of the frontend that sent it. A worker tells each frontend of the load of the others."""
    salt: str = ""
    """Separates the KV cache of this prompt from that of requests with another one: a digest of the client's
    ``cache_salt``, never the text itself. The names of ``media`` already contain it."""

    @property
    def is_prefilled_elsewhere(self) -> bool:
        """Whether this worker gets the prompt's KV cache, and so needs no media to make it."""
        return self.kv is not None
