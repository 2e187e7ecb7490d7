"""Which worker takes a request: a cost for each, and policies that choose by it or without it. Pure.

The cost of a worker, in tokens, is what it has to compute for this request, and by weights below 1 what it prefills
before that and the decoding that goes on beside it::

    prompt - credit + prefill_weight * waiting prefill + decode_weight * KV tokens of running requests

``credit`` counts the prompt's blocks that the worker's device holds in full, and those that lie in its host's memory or
on its disk by ``host_credit`` and ``disk_credit``: reading them back is cheaper than computing them, but not free.

A token that is computed again weighs more than one that waits already, although both delay this request by the same:
the one that waits is computed wherever the request goes, while the other is work that a better choice saves, delays all
who come later, and puts a second copy of a block in place of another one. Simulated on a public trace of conversations
near saturation (docs/routing.md), a quarter for what waits, against equal weights, brings the share of prompts found in
caches from 21 to 24 % of the 27 % that one cache of the same size would have (8 workers), and from 28 to 34 % of 37 %
(64 workers), at the same TTFT p90. It must stay above 0: one over it is how much longer than a hot prefix takes to
compute a request may wait for it.
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
    """Tokens at the prompt's start that its device holds; its device and host; its device, host and disk."""
    blocks: int = 0
    """That its device holds in all: of equals, the one with the fewest has the most room for something new."""


def cost(candidate: Candidate, prompt_tokens: int, weights: Weights) -> float:
    """In tokens. See the module."""
    device, host, disk = candidate.held
    credit = device + weights.host_credit * (host - device) + weights.disk_credit * (disk - host)
    left = max(0.0, prompt_tokens - credit)
    waiting, running = candidate.load.prefill_tokens, candidate.load.kv_tokens
    return left + weights.prefill_weight * waiting + weights.decode_weight * running


class Policy:
    """Chooses among candidates, which are never empty and in any order. Keeps no more than a counter."""

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
        return candidates[0] if len(candidates) == 1 else self._choose(candidates, prompt_tokens)

    def _cheapest(self, candidates: Sequence[Candidate], prompt_tokens: int) -> Candidate:
        costs = [cost(one, prompt_tokens, self._weights) for one in candidates]
        least = min(costs)
        if not self._weights.temperature:
            ties = [one for one, its in zip(candidates, costs, strict=True) if its == least]
            return min(ties, key=lambda one: (one.load.requests, one.blocks, one.id))
        scale = self._weights.temperature * max(1, prompt_tokens)
        odds = [math.exp((least - one) / scale) for one in costs]
        return self._rng.choices(candidates, odds)[0]

    def _next(self, candidates: Sequence[Candidate], _: int) -> Candidate:
        self._turn += 1
        return sorted(candidates, key=lambda one: one.id)[self._turn % len(candidates)]

    def _better_of_two(self, candidates: Sequence[Candidate], _: int) -> Candidate:
        return min(self._rng.sample(candidates, 2), key=_load)


def _load(candidate: Candidate) -> tuple[int, int, str]:
    return candidate.load.requests, candidate.load.prefill_tokens + candidate.load.kv_tokens, candidate.id
