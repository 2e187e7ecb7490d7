"""Changes a request's sampling for a worker that continues an answer, or only begins it."""

from __future__ import annotations

import hashlib

import msgspec

from triptych.contracts.errors import AbilityMissing, BadRequest
from triptych.contracts.request import Sampling

DISCARDED = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
"""The sampling of a prefill whose token is not used: one token, drawn the cheapest way."""


def resumed(sampling: Sampling, num_generated: int) -> Sampling:
    """Returns ``sampling`` for the rest of an answer, after so many tokens.

    vLLM treats tokens that were generated elsewhere as a part of the prompt. Raises AbilityMissing for an answer that
    cannot be continued in this way (``Sampling.needs_history``), and BadRequest if no token is left.
    """
    if not num_generated:
        return sampling
    if sampling.needs_history:
        raise AbilityMissing(
            "an answer under presence_penalty, frequency_penalty or response_format cannot go on in another engine"
        )
    if num_generated >= sampling.max_tokens:
        raise BadRequest(f"all of max_tokens ({sampling.max_tokens}) are generated already", param="max_tokens")
    return msgspec.structs.replace(
        sampling,
        max_tokens=sampling.max_tokens - num_generated,
        min_tokens=max(0, sampling.min_tokens - num_generated),
        seed=_later_seed(sampling.seed, num_generated),
    )


def first_token(sampling: Sampling) -> Sampling:
    """Returns ``sampling`` for the answer's first token alone, drawn as the whole answer's would be."""
    return msgspec.structs.replace(sampling, max_tokens=1, min_tokens=min(1, sampling.min_tokens))


def _later_seed(seed: int | None, num_generated: int) -> int | None:
    """Returns a different seed for each place in the answer. The same seed would repeat the draws of its beginning."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}:{num_generated}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # within vLLM's signed 64 bits
