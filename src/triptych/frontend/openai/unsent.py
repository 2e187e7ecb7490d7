"""What an answer holds in memory before its client has it: bounded for a stream, counted where it is large.

A client that reads nothing stops its stream: workers send so many tokens ahead and no more, and up to as many wait,
taken apart, for the connection. Without log probabilities that is 100 KB a choice at most, which ``--max-in-flight``
bounds; with them it is megabytes, which count among ``--max-held-bytes``.
"""

from __future__ import annotations

from triptych.contracts.request import GenerateRequest
from triptych.planes.request.frames import WINDOW

MAX_UNSENT_TOKENS = 2 * WINDOW
LOGPROB_BYTES = 120
"""Of one token's log probability, taken apart or as JSON."""


def bytes_per_token(request: GenerateRequest) -> int:
    """How much a token's log probabilities hold; 0 where none are wanted."""
    wanted = request.sampling.logprobs
    return 0 if wanted is None else LOGPROB_BYTES * (1 + wanted)


def max_unsent_bytes(request: GenerateRequest) -> int:
    """Most that log probabilities hold of a streamed choice whose client does not read."""
    return min(MAX_UNSENT_TOKENS, request.sampling.max_tokens) * bytes_per_token(request)
