"""Chooses the worker for a request: a cost of each worker, and policies that use it or not. Pure.

The cost of a worker, in tokens, is what it has to compute for this request. By weights below 1 it also counts what the
worker prefills before, and the decoding that goes on beside it::

prompt - credit + prefill_weight * waiting prefill + decode_weight * KV tokens of running requests

``credit`` counts the prompt's blocks on the worker's device in full, and those in host memory or on disk by
``host_credit`` and ``disk_credit``: to read them back is cheaper than to compute them, but not free.

A token that is computed again weighs more than a token that waits already, although both delay this request equally.
The waiting token is computed wherever the request goes. The other one is work that a better choice saves: it delays all
later requests, and puts a second copy of a block in the place of another block. This was simulated on a public trace of
conversations near saturation (docs/routing.md). Against equal weights, a weight of a quarter for waiting tokens raises
the share of prompts found in caches from 21 to 24 % of the 27 % that one cache of the same size would have (8 workers),
and from 28 to 34 % of 37 % (64 workers), at the same TTFT p90. The weight must stay above 0: a request may wait for a
cached prefix 1 / weight times as long as the prefix takes to compute.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

from triptych.config.router import Weights
from triptych.contracts.kv_events import Load

PolicyName = Literal["kv", "round-robin", "random", "least-loaded", "power-of-two"]
POLICIES: tuple[str, ...] = get_args(PolicyName)


class Candidate(NamedTuple):
    """A worker that could take a request."""

    id: str
    load: Load
    held: tuple[int, int, int] = (0, 0, 0)
    """Number of tokens at the prompt's start in three sets of tiers: device; device and host; device, host and disk."""
    blocks: int = 0
    """Number of all blocks on its device. Among equal workers, the one with the fewest has the most room for new
    blocks."""


def cost(candidate: Candidate, prompt_tokens: int, weights: Weights) -> float:
    """Returns the cost of a worker in tokens, as the module explains."""
    device, host, disk = candidate.held
    credit = device + weights.host_credit * (host - device) + weights.disk_credit * (disk - host)
    left = max(0.0, prompt_tokens - credit)
    waiting, running = candidate.load.prefill_tokens, candidate.load.kv_tokens
    return left + weights.prefill_weight * waiting + weights.decode_weight * running


class Policy:
    """Chooses among candidates, of which there must be one or more, in any order. Its only state is a counter."""

    def __init__(self, name: PolicyName, weights: Weights, rng: random.Random) -> None:
        self.name = name
        self._weights = weights
        self._rng = rng
        self._turn = 0
        self._choose: Callable[[Sequence[Candidate], int], Candidate] = {
            "kv": self._cheapest,
            "round-robin": self._next,
            "random": lambda candidates, _: rng.choice(candidates),
            "least-loaded": lambda candidates, _: min(candidates, key=_load),
            "power-of-two": self._better_of_two,
        }[name]

    def choose(self, candidates: Sequence[Candidate], prompt_tokens: int) -> Candidate:
        """Returns the candidate that takes the request."""
        return candidates[0] if len(candidates) == 1 else self._choose(candidates, prompt_tokens)

    def _cheapest(self, candidates: Sequence[Candidate], prompt_tokens: int) -> Candidate:
        costs = [cost(candidate, prompt_tokens, self._weights) for candidate in candidates]
        least = min(costs)
        if not self._weights.temperature:
            ties = [candidate for candidate, tokens in zip(candidates, costs, strict=True) if tokens == least]
            return min(ties, key=lambda tie: (tie.load.requests, tie.blocks, tie.id))
        scale = self._weights.temperature * max(1, prompt_tokens)
        odds = [math.exp((least - tokens) / scale) for tokens in costs]
        return self._rng.choices(candidates, odds)[0]

    def _next(self, candidates: Sequence[Candidate], _: int) -> Candidate:
        self._turn += 1
        return sorted(candidates, key=lambda candidate: candidate.id)[self._turn % len(candidates)]

    def _better_of_two(self, candidates: Sequence[Candidate], _: int) -> Candidate:
        return min(self._rng.sample(candidates, 2), key=_load)


def _load(candidate: Candidate) -> tuple[int, int, str]:
    return candidate.load.requests, candidate.load.prefill_tokens + candidate.load.kv_tokens, candidate.id
