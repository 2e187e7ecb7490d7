"""Makes the answers of the mock engine."""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from itertools import islice

from triptych.contracts.answer import FinishReason, TokenLogprob
from triptych.contracts.request import GenerateRequest, Sampling
from triptych.contracts.tokens import TokenIds


def answer_of(request: GenerateRequest, placeholders: Collection[int]) -> list[int]:
    """Returns the rest of the answer, as the worker that made ``request.generated_ids`` would have continued
    it.
    """
    sampling, ids = request.sampling, TokenIds(request.token_ids)
    length = len(ids) - sum(ids.count_each(placeholders).values())
    if not length:
        ids, length = TokenIds([0]), 1
    wanted = sampling.max_tokens if sampling.ignore_eos else max(length, sampling.min_tokens)
    begin = _begin(request, length, placeholders)
    first, last = begin + len(request.generated_ids), begin + min(wanted, sampling.max_tokens)
    own = (token for token in ids if token not in placeholders)
    if last <= length:
        return list(islice(own, first, last))  # of a long prompt no more is looked at than is said
    return (list(own) * math.ceil(last / length))[first:last]


def _begin(request: GenerateRequest, length: int, placeholders: Collection[int]) -> int:
    """Returns where in its prompt the answer starts."""
    if request.sampling.temperature <= 0:
        return 0
    if request.generated_ids:
        return _start([token for token in request.token_ids if token not in placeholders] or [0], request.generated_ids)
    return random.Random(request.sampling.seed).randrange(length)


def _start(prompt: list[int], generated_ids: list[int]) -> int:
    """Returns where the answer ``generated_ids``, which repeats ``prompt``, began."""
    twice = prompt * 2
    rounds = generated_ids[: len(prompt)]
    return next((i for i in range(len(prompt)) if twice[i : i + len(rounds)] == rounds), 0)


def finish_of(sampling: Sampling, length: int) -> FinishReason:
    return "length" if length >= sampling.max_tokens else "stop"


def logprobs_of(token: int, sampling: Sampling) -> list[TokenLogprob] | None:
    """Makes up well-formed log probabilities: the chosen token has 50 %, each next id half of the one before."""
    if sampling.logprobs is None:
        return None
    top = [(token + rank, math.log(0.5) * (rank + 1)) for rank in range(sampling.logprobs)]
    return [TokenLogprob(math.log(0.5), top)]
