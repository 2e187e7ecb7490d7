"""Defines the deltas that answer a GenerateRequest, as a stream."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort"]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One position's chosen token and its most likely alternatives."""

    logprob: float
    """The natural logarithm of the chosen token's probability."""
    top: list[tuple[int, float]] = []
    """The alternatives as (token id, logprob), the most likely first."""


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """Seconds that a request spent in each part of the worker; sent with the last delta."""

    preprocess_s: float = 0.0
    """Time to decode media and to prepare the engine's input."""
    prefill_s: float = 0.0
    """Time in the engine until the first token: waiting for its scheduler, encoding media (if the span holds ``e``) and
    prefilling."""
    decode_s: float = 0.0
    """Time from the first token to the last."""
    encode_s: float = 0.0
    """Time at encode workers, from the frontend's call to the answer. 0 if media were encoded with the prefill."""


class TokenDelta(msgspec.Struct, frozen=True, array_like=True):
    """Tokens made since the previous delta. Exactly one delta of a stream has a ``finish_reason``: the last."""

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    """The prompt's length in the first delta, with placeholders expanded and without ``generated_ids``; else 0."""
    cached_tokens: int = 0
    """Number of prompt tokens that were found in the KV cache, in the first delta; 0 in the others."""
    logprobs: list[TokenLogprob] | None = None
    """One entry for each token, if the request wants log probabilities."""
    timing: Timing | None = None
    stop_token: bool = False
    """Whether the last of ``token_ids`` ended the text (end of sequence or stop token) and is not a part of it."""
