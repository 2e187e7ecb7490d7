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
from triptych.contracts.shown import shown
from triptych.contracts.suggest import suggested_to_client
from triptych.kv.block_hash import block_hashes, root
from triptych.kv.guessed_blocks import GuessedBlocks
from triptych.kv.index import KvIndex, Match
from triptych.router.affinity import home
from triptych.router.policy import Candidate, Policy, PolicyName
from triptych.router.workload import Workload

INSTANCE_HEADER = "x-triptych-instance"
SESSION_HEADER = "x-session-id"
EACH, STEP = 32, 64
"""Of workers that report nothing, what they may hold is remembered by so few of a prompt's blocks: a guess need be no
closer, and 60,000 tokens are then 90 blocks and not 3,750, which took the event loop 4 ms."""


@dataclass(frozen=True)
class RoutingHint:
    """What a client says of where its request should go; empty: nothing."""

    session: str = ""
    instance: str = ""
    """The name of a worker's instance, for the policy ``direct``."""


class PromptKeys:
    """A prompt's tokens, ``named`` by their media, and the hashes of its blocks, made once for each block size."""

    def __init__(self, tokens: array[int], salt: str = "") -> None:
        """``salt``: blocks of prompts with another one have other hashes (``GenerateRequest.salt``)."""
        self.tokens = tokens
        self._root = root(salt=salt)
        self.hint = RoutingHint()
        self._hashes: dict[int, list[int]] = {}
        self._landmarks: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def hashes(self, block_size: int) -> list[int]:
        if block_size not in self._hashes:
            self._hashes[block_size] = block_hashes(self.tokens, block_size, self._root)
        return self._hashes[block_size]

    def landmarks(self, block_size: int) -> list[int]:
        """Hashes like ``hashes``, of the first ``EACH`` blocks and of every ``STEP`` blocks after those together."""
        if block_size not in self._landmarks:
            tokens = memoryview(self.tokens)
            first = block_hashes(tokens[: EACH * block_size], block_size, self._root)
            rest = tokens[EACH * block_size :]
            more = block_hashes(rest, STEP * block_size, first[-1]) if len(rest) >= STEP * block_size else []
            self._landmarks[block_size] = first + more
        return self._landmarks[block_size]


def _blocks_at(landmarks: int) -> int:
    """Blocks up to and with the last one of so many landmarks."""
    return landmarks if landmarks <= EACH else EACH + (landmarks - EACH) * STEP


class Routing:
    """For one event loop; nothing here waits, and ``now_s`` is the caller's clock."""

    def __init__(self, config: RouterConfig, rng: random.Random | None = None) -> None:
        self._config = config
        self.origin = secrets.token_hex(6)
        """By which workers tell this frontend's requests from those of others."""
        self._rng = rng or random.Random()
        self._levels = [KvIndex() for _ in Level]
        self._guessed = KvIndex()
        """Landmarks of prompts that workers were sent which report nothing."""
        self._recent = GuessedBlocks(config.router_remember_s)
        self._workload = Workload()
        self._policies: dict[str, Policy] = {}
        self._last: tuple[PromptKeys, dict[int, list[Match]], dict[int, Match]] | None = None
        """The prompt that was asked for last, and by block size who holds how much of it at each level, and who is
        guessed to hold how many of its landmarks."""

    # What workers tell.

    def apply(self, worker: str, batch: KvBatch) -> Iterator[None]:
        """A message of ``worker``, in order. The iteration drops what a reset has made of no use, in steps."""
        sweeps = self._forget(worker) if batch.reset else iter(())
        self._last = None
        for change in batch.changes:
            index = self._levels[change.level]
            (index.store if change.stored else index.remove)(worker, unpacked(change.hashes))
        return sweeps

    def report(self, worker: str, load: Load) -> None:
        self._workload.report(worker, load)

    def forget(self, worker: str) -> Iterator[None]:
        """``worker`` is gone. To be iterated over, as ``KvIndex.forget``."""
        self._workload.forget(worker)
        self._recent.forget(worker)
        return self._forget(worker)

    def _forget(self, worker: str) -> Iterator[None]:
        self._last = None
        sweeps = [index.forget(worker) for index in (*self._levels, self._guessed)]
        return (step for sweep in sweeps for step in sweep)

    # Choosing.

    def choose(self, stages: str, pool: Sequence[Instance], prompt: PromptKeys) -> Instance:
        """Who of ``pool``, which is not empty, takes ``stages`` of a request: by its prefill, else by what decodes.

        Raises BadRequest where the policy is ``direct`` and the request names none of them.
        """
        prefills = "p" in stages
        if prefills and self._config.router_policy == "direct":
            return _named(prompt.hint.instance, pool)
        if prefills and self._config.router_sessions and prompt.hint.session:
            by_name = {one.name: one for one in pool}
            return by_name[home(prompt.hint.session, sorted(by_name), lambda name: self.requests(by_name[name]))]
        by_prefix = prefills and self._config.router_policy == "kv"
        held = self._held(pool, prompt) if by_prefix else [(0, 0, 0)] * len(pool)
        candidates = [
            Candidate(one.id, self._workload.of(one.id), tokens, self._blocks(one))
            for one, tokens in zip(pool, held, strict=True)
        ]
        chosen = self._policy(stages).choose(candidates, len(prompt) if prefills else 0)
        return next(one for one in pool if one.id == chosen.id)

    def held_tokens(self, instance: Instance, prompt: PromptKeys) -> int:
        """Tokens at the prompt's start that ``instance`` has on its device."""
        return self._held([instance], prompt)[0][0]

    def requests(self, instance: Instance) -> int:
        """That ``instance`` has to answer, of all frontends."""
        return self._workload.requests(instance.id)

    def _policy(self, stages: str) -> Policy:
        if stages not in self._policies:
            stated = self._config.router_policy
            name: PolicyName = "least-loaded" if stated == "direct" else stated
            self._policies[stages] = Policy(name, self._config.weights, self._rng)
        return self._policies[stages]

    def _held(self, pool: Sequence[Instance], prompt: PromptKeys) -> list[tuple[int, int, int]]:
        """Tokens of each one's device; device and host; device, host and disk."""
        return [self._held_by(one, prompt) for one in pool]

    def _held_by(self, one: Instance, prompt: PromptKeys) -> tuple[int, int, int]:
        size = one.model.block_size
        if not one.reports_kv:
            guess = _leading(self._guesses(prompt, size), self._guessed.bit(one.id))
            return (_blocks_at(guess) * size,) * 3
        device, host, disk = (
            _leading(match, index.bit(one.id)) * size if match else 0
            for match, index in zip(self._matches(prompt, size), self._levels, strict=True)
        )
        return device, max(device, host), max(device, host, disk)

    def _blocks(self, one: Instance) -> int:
        """All that it holds on its device, as far as is known."""
        return (self._levels[Level.DEVICE] if one.reports_kv else self._guessed).held(one.id)

    def _matches(self, prompt: PromptKeys, block_size: int) -> list[Match]:
        """Of each level. Looked up once for all that is asked of a prompt before something else is told."""
        known = self._known(prompt)[1]
        if block_size not in known:
            known[block_size] = [index.match(prompt.hashes(block_size)) for index in self._levels]
        return known[block_size]

    def _guesses(self, prompt: PromptKeys, block_size: int) -> Match:
        known = self._known(prompt)[2]
        if block_size not in known:
            known[block_size] = self._guessed.match(prompt.landmarks(block_size))
        return known[block_size]

    def _known(self, prompt: PromptKeys) -> tuple[PromptKeys, dict[int, list[Match]], dict[int, Match]]:
        if self._last is None or self._last[0] is not prompt:
            self._last = prompt, {}, {}
        return self._last

    # The account.

    @contextmanager
    def reserve(self, instance: Instance, load: Load) -> Iterator[None]:
        """``load`` for ``instance``, for the block."""
        self._workload.begin(instance.id, load)
        try:
            yield
        finally:
            self._workload.end(instance.id, load)

    def prefilled(self, instance: Instance, prompt: PromptKeys, now_s: float) -> None:
        """``instance`` has computed the prompt; one that does not say so itself is thought to keep it for a while."""
        self._last = None
        for worker, gone in self._recent.expired(now_s):
            self._guessed.remove(worker, gone)
        if instance.reports_kv:
            return
        landmarks = prompt.landmarks(instance.model.block_size)
        gone = self._recent.note(instance.id, landmarks, now_s)
        self._guessed.store(instance.id, landmarks)
        self._guessed.remove(instance.id, gone)


def _leading(match: Match, bit: int) -> int:
    """Blocks that the worker of this bit holds."""
    for blocks, workers in match:
        if workers & bit:
            return blocks
    return 0


def _named(name: str, pool: Sequence[Instance]) -> Instance:
    found = next((one for one in pool if one.name == name), None)
    if found is None:
        those = ", ".join(sorted(one.name for one in pool))
        hint = suggested_to_client(name, (one.name for one in pool)) or ";"
        reason = f"names {shown(name)}{hint}" if name else "is missing;"
        raise BadRequest(
            f"the header {INSTANCE_HEADER} {reason} workers that can take this request now: {those}",
            param=INSTANCE_HEADER,
            code="instance_unknown",
        )
    return found
