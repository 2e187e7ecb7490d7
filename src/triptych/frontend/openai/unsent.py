"""Bounds the memory that an answer takes before its client has read it.

A client that reads nothing stops its stream: workers send a limited number of tokens ahead, and as many wait, decoded,
for the connection. Without log probabilities that is 100 KB a choice at most, which ``--max-in-flight`` bounds. With
log probabilities it is megabytes, which count against ``--max-held-bytes``.
"""

from __future__ import annotations

from triptych.contracts.request import GenerateRequest
from triptych.planes.request.frames import WINDOW

MAX_UNSENT_TOKENS = 2 * WINDOW
LOGPROB_BYTES = 120
"""The bytes of one token's log probability, decoded or as JSON."""


def bytes_per_token(request: GenerateRequest) -> int:
    """Returns the bytes that a token's log probabilities take; 0 where the request wants none."""
    wanted = request.sampling.logprobs
    return 0 if wanted is None else LOGPROB_BYTES * (1 + wanted)


def max_unsent_bytes(request: GenerateRequest) -> int:
    """Returns the most bytes that log probabilities of one streamed choice take while its client does not read."""
    return min(MAX_UNSENT_TOKENS, request.sampling.max_tokens) * bytes_per_token(request)
