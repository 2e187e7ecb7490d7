"""Routes in a simulation, by the policy, index and workload of the real router."""

from __future__ import annotations

import random
from collections.abc import Sequence

from triptych.config.router import Weights
from triptych.contracts.kv_events import Load
from triptych.kv.index import KvIndex
from triptych.router.affinity import home
from triptych.router.policy import Candidate, Policy, PolicyName
from triptych.router.workload import Workload
from triptych.simulate.blocks import BlockChange


class PoolRouter:
    """Chooses a worker of a pool for a job, by what the router knows so far."""

    def __init__(self, policy: PolicyName, weights: Weights, names: list[str], block_size: int, seed: int) -> None:
        self._names = names
        self._block_size = block_size
        self._by_prefix = policy == "kv"
        self._index = KvIndex()
        self._bits = [self._index.bit(name) for name in names]
        self._workload = Workload()
        self._policy = Policy(policy, weights, random.Random(seed))
        self._places = {name: place for place, name in enumerate(names)}

    def choose(self, prompt_tokens: int = 0, hashes: Sequence[int] = ()) -> tuple[int, int]:
        """Returns (the worker's index in the pool, tokens that it is expected to prefill).

        An empty prompt stands for a decode only.
        """
        held = self._held(prompt_tokens, hashes)
        candidates = [
            Candidate(name, self._workload.of(name), (tokens, tokens, tokens))
            for name, tokens in zip(self._names, held, strict=True)
        ]
        chosen = self._policy.choose(candidates, prompt_tokens)
        return self._places[chosen.id], prompt_tokens - chosen.held[0]

    def _held(self, prompt_tokens: int, hashes: Sequence[int]) -> Sequence[int]:
        """Returns the number of cached tokens at the prompt's start by worker. The last token must always be
        computed."""
        held = [0] * len(self._names)
        if not self._by_prefix:
            return held
        max_blocks = max(0, (prompt_tokens - 1) // self._block_size)
        for blocks, workers in self._index.match(hashes):
            tokens = min(blocks, max_blocks) * self._block_size
            for place, bit in enumerate(self._bits):
                if workers & bit:
                    held[place] = tokens
        return held

    def begin(self, place: int, load: Load) -> None:
        """Counts ``load`` at a worker."""
        self._workload.begin(self._names[place], load)

    def end(self, place: int, load: Load) -> None:
        """Removes ``load`` from a worker."""
        self._workload.end(self._names[place], load)

    def report(self, place: int, changes: Sequence[BlockChange]) -> None:
        """Applies a worker's report of its blocks."""
        name = self._names[place]
        for change in changes:
            (self._index.store if change.stored else self._index.remove)(name, (change.hash,))


class EncoderRouter:
    """Chooses an encode worker for a request's media. Equal content goes to one worker until that is overloaded."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._load = dict.fromkeys(names, 0)

    def choose(self, content: int) -> int:
        chosen = home(str(content), self._names, self._load.__getitem__)
        self._load[chosen] += 1
        return self._names.index(chosen)

    def ended(self, place: int) -> None:
        self._load[self._names[place]] -= 1
