"""All that a frontend knows for choosing workers: what they hold, what they have to do, and the policy."""

from __future__ import annotations

import random
import secrets
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from triptych.config.router import RouterConfig
from triptych.contracts.card import Instance
from triptych.contracts.errors import BadRequest
from triptych.contracts.kv_events import KvBatch, Level, Load, unpacked
from triptych.router.affinity import home
from triptych.router.block_hash import block_hashes
from triptych.router.kv_index import KvIndex, Match
from triptych.router.policy import Candidate, Policy, PolicyName
from triptych.router.recent import Recent
from triptych.router.workload import Work, Workload

INSTANCE_HEADER = "x-triptych-instance"
SESSION_HEADER = "x-session-id"


@dataclass(frozen=True)
class Wish:
    """What a client says of where its request should go; empty: nothing."""

    session: str = ""
    instance: str = ""
    """The name of a worker's instance, for the policy ``direct``."""


class Prompt:
    """A prompt's tokens, ``named`` by their media, and the hashes of its blocks, made once for each block size."""

    def __init__(self, tokens: array[int]) -> None:
        self.tokens = tokens
        self.wish = Wish()
        self._hashes: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def hashes(self, block_size: int) -> list[int]:
        if block_size not in self._hashes:
            self._hashes[block_size] = block_hashes(self.tokens, block_size)
        return self._hashes[block_size]


class Routing:
    """For one event loop; nothing here waits, and ``now_s`` is the caller's clock."""

    def __init__(self, config: RouterConfig, chance: random.Random | None = None) -> None:
        self._config = config
        self.origin = secrets.token_hex(6)
        """By which workers tell this frontend's requests from those of others."""
        self._chance = chance or random.Random()
        self._levels = [KvIndex() for _ in Level]
        self._recent = Recent(config.router_remember_s)
        self._workload = Workload()
        self._policies: dict[str, Policy] = {}

    # What workers tell.

    def apply(self, worker: str, batch: KvBatch) -> Iterator[None]:
        """A message of ``worker``, in order. The iteration drops what a reset has made of no use, in steps."""
        sweeps = self._forget(worker) if batch.reset else iter(())
        for change in batch.changes:
            index = self._levels[change.level]
            (index.store if change.stored else index.remove)(worker, unpacked(change.hashes))
        return sweeps

    def report(self, worker: str, load: Load) -> None:
        self._workload.report(worker, Work(load.prefill_tokens, load.kv_tokens, load.requests))

    def forget(self, worker: str) -> Iterator[None]:
        """``worker`` is gone. To be iterated over, as ``KvIndex.forget``."""
        self._workload.forget(worker)
        self._recent.forget(worker)
        return self._forget(worker)

    def _forget(self, worker: str) -> Iterator[None]:
        sweeps = [index.forget(worker) for index in self._levels]
        return (step for sweep in sweeps for step in sweep)

    # Choosing.

    def choose(self, stages: str, pool: Sequence[Instance], prompt: Prompt) -> Instance:
        """Who of ``pool``, which is not empty, takes ``stages`` of a request: by its prefill, else by what decodes.

        Raises BadRequest where the policy is ``direct`` and the request names none of them.
        """
        prefills = "p" in stages
        if prefills and self._config.router_policy == "direct":
            return _named(prompt.wish.instance, pool)
        if prefills and self._config.router_sessions and prompt.wish.session:
            by_name = {one.name: one for one in pool}
            return by_name[home(prompt.wish.session, sorted(by_name), lambda name: self.requests(by_name[name]))]
        matches = self._matches(pool, prompt) if prefills and self._config.router_policy == "kv" else {}
        device = self._levels[Level.DEVICE]
        candidates = [
            Candidate(one.id, self._workload.of(one.id), self._held(one, matches), device.held(one.id)) for one in pool
        ]
        chosen = self._policy(stages).choose(candidates, len(prompt) if prefills else 0)
        return next(one for one in pool if one.id == chosen.id)

    def held_tokens(self, instance: Instance, prompt: Prompt) -> int:
        """Tokens at the prompt's start that ``instance`` has on its device."""
        return self._held(instance, self._matches([instance], prompt))[0]

    def requests(self, instance: Instance) -> int:
        """That ``instance`` has to answer, of all frontends."""
        return self._workload.requests(instance.id)

    def _policy(self, stages: str) -> Policy:
        if stages not in self._policies:
            stated = self._config.router_policy
            name: PolicyName = "least-loaded" if stated == "direct" else stated
            self._policies[stages] = Policy(name, self._config.weights, self._chance)
        return self._policies[stages]

    def _matches(self, pool: Sequence[Instance], prompt: Prompt) -> dict[int, list[Match]]:
        """By block size: what is held at each level."""
        sizes = {one.model.block_size for one in pool}
        return {size: [index.match(prompt.hashes(size)) for index in self._levels] for size in sizes}

    def _held(self, instance: Instance, matches: dict[int, list[Match]]) -> tuple[int, int, int]:
        size = instance.model.block_size
        if size not in matches:
            return (0, 0, 0)
        bits = [index.bit(instance.id) for index in self._levels]
        found = [
            next((blocks * size for blocks, workers in match if workers & bit), 0)
            for match, bit in zip(matches[size], bits, strict=True)
        ]
        device, host, disk = found
        return device, max(device, host), max(device, host, disk)

    # The account.

    @contextmanager
    def taken(self, instance: Instance, work: Work) -> Iterator[None]:
        """``work`` for ``instance``, for the block."""
        self._workload.begin(instance.id, work)
        try:
            yield
        finally:
            self._workload.end(instance.id, work)

    def prefilled(self, instance: Instance, prompt: Prompt, now_s: float) -> None:
        """``instance`` has computed the prompt; one that does not say so itself is thought to keep it for a while."""
        for worker, gone in self._recent.expired(now_s):
            self._levels[Level.DEVICE].remove(worker, gone)
        if instance.reports_kv:
            return
        hashes = prompt.hashes(instance.model.block_size)
        gone = self._recent.note(instance.id, hashes, now_s)
        index = self._levels[Level.DEVICE]
        index.store(instance.id, hashes)
        index.remove(instance.id, gone)


def _named(name: str, pool: Sequence[Instance]) -> Instance:
    found = next((one for one in pool if one.name == name), None)
    if found is None:
        those = ", ".join(sorted(one.name for one in pool))
        reason = f"names {name[:64]!r}" if name else "is missing"
        raise BadRequest(
            f"the header {INSTANCE_HEADER} {reason}; workers that can take this request now: {those}",
            param=INSTANCE_HEADER,
            code="instance_unknown",
        )
    return found
