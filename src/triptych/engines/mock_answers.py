"""What the mock engine says."""

from __future__ import annotations

import math
import random
from collections.abc import Container

from triptych.contracts.request import FinishReason, GenerateRequest, Sampling, TokenLogprob


def answer_of(request: GenerateRequest, placeholders: Container[int]) -> list[int]:
    """What is left to say after ``request.said``: whoever said that would have gone on so."""
    sampling = request.sampling
    said = [token for token in request.token_ids if token not in placeholders] or [0]
    if sampling.temperature > 0:
        start = _start(said, request.said) if request.said else random.Random(sampling.seed).randrange(len(said))
        said = said[start:] + said[:start]
    wanted = sampling.max_tokens if sampling.ignore_eos else max(len(said), sampling.min_tokens)
    rounds = math.ceil(wanted / len(said))
    return (said * rounds)[len(request.said) : min(wanted, sampling.max_tokens)]


def _start(prompt: list[int], said: list[int]) -> int:
    """Where the answer ``said``, which goes round in ``prompt``, began."""
    twice = prompt * 2
    rounds = said[: len(prompt)]
    return next((i for i in range(len(prompt)) if twice[i : i + len(rounds)] == rounds), 0)


def finish_of(sampling: Sampling, length: int) -> FinishReason:
    return "length" if length >= sampling.max_tokens else "stop"


def logprobs_of(token: int, sampling: Sampling) -> list[TokenLogprob] | None:
    """Made-up but well-formed: the chosen token at 50 %, each next id at half of the one before."""
    if sampling.logprobs is None:
        return None
    top = [(token + rank, math.log(0.5) * (rank + 1)) for rank in range(sampling.logprobs)]
    return [TokenLogprob(math.log(0.5), top)]
