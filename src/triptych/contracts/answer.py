"""The stream of deltas that answers a GenerateRequest."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort"]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One position's chosen token and its most likely alternatives."""

    logprob: float
    """Natural logarithm of the chosen token's probability."""
    top: list[tuple[int, float]] = []
    """(token id, logprob), most likely first."""


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """Seconds that a request spent in each part of the worker; sent with the last delta."""

    preprocess_s: float = 0.0
    """Decoding media and preparing the engine's input."""
    prefill_s: float = 0.0
    """Waiting for the engine's scheduler, encoding media (where the span holds ``e``) and prefilling, until the
    first token."""
    decode_s: float = 0.0
    """First token to last."""
    encode_s: float = 0.0
    """At encode workers, from the frontend's call to the answer. 0 if media were encoded with the prefill."""


class TokenDelta(msgspec.Struct, frozen=True, array_like=True):
    """Tokens made since the previous delta. Exactly one delta of a stream has a ``finish_reason``: the last."""

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    """Prompt length with placeholders expanded and without ``generated_ids``, in the first delta; 0 in the others."""
    cached_tokens: int = 0
    """Prompt tokens found in the KV cache, in the first delta."""
    logprobs: list[TokenLogprob] | None = None
    """One entry for each token, if the request wants log probabilities."""
    timing: Timing | None = None
    stop_token: bool = False
    """The last of ``token_ids`` ended the text (end of sequence or stop token): not a part of the text."""
