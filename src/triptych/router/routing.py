"""Keeps everything that a frontend knows for choosing workers: what they hold, their load, and the policy."""

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
"""The landmarks of a prompt: each of the first EACH blocks, and every STEP-th block after that. For workers that report
nothing, only landmarks are remembered. A guess need not be more exact, and 60,000 tokens have 90 landmarks instead of
3,750 blocks, which took the event loop 4 ms."""


@dataclass(frozen=True)
class RoutingHint:
    """The wish of a client where its request should go. Empty fields are no wish."""

    session: str = ""
    instance: str = ""
    """The name of an instance, for the policy ``direct``."""


class PromptKeys:
    """A prompt's tokens, ``named`` by their media, and the hashes of its blocks, made once for each block size."""

    def __init__(self, tokens: array[int], salt: str = "") -> None:
        """``tokens`` are prompt keys (``kv.prompt_keys``). Prompts with different salts share no block hashes."""
        self.tokens = tokens
        self._root = root(salt=salt)
        self.hint = RoutingHint()
        self._hashes: dict[int, list[int]] = {}
        self._landmarks: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def hashes(self, block_size: int) -> list[int]:
        """Returns the hashes of the prompt's full blocks."""
        if block_size not in self._hashes:
            self._hashes[block_size] = block_hashes(self.tokens, block_size, self._root)
        return self._hashes[block_size]

    def landmarks(self, block_size: int) -> list[int]:
        """Returns the hashes of each of the first ``EACH`` blocks, and of each run of ``STEP`` blocks after those."""
        if block_size not in self._landmarks:
            tokens = memoryview(self.tokens)
            first = block_hashes(tokens[: EACH * block_size], block_size, self._root)
            rest = tokens[EACH * block_size :]
            more = block_hashes(rest, STEP * block_size, first[-1]) if len(rest) >= STEP * block_size else []
            self._landmarks[block_size] = first + more
        return self._landmarks[block_size]


def _blocks_at(landmarks: int) -> int:
    """Returns the number of blocks up to the last of so many landmarks, that one included."""
    return landmarks if landmarks <= EACH else EACH + (landmarks - EACH) * STEP


class Routing:
    """Chooses workers. For one event loop. No method waits, and ``now_s`` comes from the caller's clock."""

    def __init__(self, config: RouterConfig, rng: random.Random | None = None) -> None:
        self._config = config
        self.frontend_id = secrets.token_hex(6)
        """The id by which workers tell this frontend's requests from those of others."""
        self._rng = rng or random.Random()
        self._levels = [KvIndex() for _ in Level]
        self._guessed = KvIndex()
        """Landmarks of the prompts that were sent to workers which report nothing."""
        self._sent_blocks = GuessedBlocks(config.router_remember_s)
        self._workload = Workload()
        self._policies: dict[str, Policy] = {}
        self._last: tuple[PromptKeys, dict[int, list[Match]], dict[int, Match]] | None = None
        """The prompt that was looked up last. By block size, it has the matches of each level, and the match of the
        guessed landmarks."""

    # Updates of workers.

    def apply(self, worker: str, batch: KvBatch) -> Iterator[None]:
        """Applies a message of ``worker``; messages must come in order.

        The caller iterates over the result, which drops the entries that a reset made useless, in steps.
        """
        sweeps = self._forget(worker) if batch.reset else iter(())
        self._last = None
        for change in batch.changes:
            index = self._levels[change.level]
            (index.store if change.stored else index.remove)(worker, unpacked(change.hashes))
        return sweeps

    def report(self, worker: str, load: Load) -> None:
        """Sets the load that ``worker`` reports of other frontends."""
        self._workload.report(worker, load)

    def forget(self, worker: str) -> Iterator[None]:
        """Forgets ``worker``, which is gone. The caller iterates over the result, as for ``KvIndex.forget``."""
        self._workload.forget(worker)
        self._sent_blocks.forget(worker)
        return self._forget(worker)

    def _forget(self, worker: str) -> Iterator[None]:
        self._last = None
        sweeps = [index.forget(worker) for index in (*self._levels, self._guessed)]
        return (step for sweep in sweeps for step in sweep)

    # Choosing.

    def choose(self, stages: str, pool: Sequence[Instance], prompt: PromptKeys) -> Instance:
        """Returns the instance of ``pool`` that runs ``stages`` of a request. ``pool`` must not be empty.

        If the stages include prefill, the router's policy decides by the prompt; otherwise only loads count. Raises
        BadRequest if the policy is ``direct`` and the request names none of the pool.
        """
        prefills = "p" in stages
        if prefills and self._config.router_policy == "direct":
            return _named_by_client(prompt.hint.instance, pool)
        if prefills and self._config.router_sessions and prompt.hint.session:
            by_name = {instance.name: instance for instance in pool}
            return by_name[home(prompt.hint.session, sorted(by_name), lambda name: self.requests(by_name[name]))]
        by_prefix = prefills and self._config.router_policy == "kv"
        held = self._held(pool, prompt) if by_prefix else [(0, 0, 0)] * len(pool)
        candidates = [
            Candidate(instance.id, self._workload.of(instance.id), tokens, self._blocks(instance))
            for instance, tokens in zip(pool, held, strict=True)
        ]
        chosen = self._policy(stages).choose(candidates, len(prompt) if prefills else 0)
        return next(instance for instance in pool if instance.id == chosen.id)

    def held_tokens(self, instance: Instance, prompt: PromptKeys) -> int:
        """Returns the number of tokens at the prompt's start that ``instance`` has on its device."""
        return self._held([instance], prompt)[0][0]

    def requests(self, instance: Instance) -> int:
        """Returns the number of requests of all frontends that ``instance`` has to answer."""
        return self._workload.requests(instance.id)

    def _policy(self, stages: str) -> Policy:
        if stages not in self._policies:
            stated = self._config.router_policy
            name: PolicyName = "least-loaded" if stated == "direct" else stated
            self._policies[stages] = Policy(name, self._config.weights, self._rng)
        return self._policies[stages]

    def _held(self, pool: Sequence[Instance], prompt: PromptKeys) -> list[tuple[int, int, int]]:
        """Returns ``Candidate.held`` of each instance."""
        return [self._held_by(instance, prompt) for instance in pool]

    def _held_by(self, instance: Instance, prompt: PromptKeys) -> tuple[int, int, int]:
        size = instance.model.block_size
        if not instance.reports_kv:
            guess = _leading(self._guesses(prompt, size), self._guessed.bit(instance.id))
            return (_blocks_at(guess) * size,) * 3
        device, host, disk = (
            _leading(match, index.bit(instance.id)) * size if match else 0
            for match, index in zip(self._matches(prompt, size), self._levels, strict=True)
        )
        return device, max(device, host), max(device, host, disk)

    def _blocks(self, instance: Instance) -> int:
        """Returns the number of blocks on the device of ``instance``, as far as is known."""
        return (self._levels[Level.DEVICE] if instance.reports_kv else self._guessed).held(instance.id)

    def _matches(self, prompt: PromptKeys, block_size: int) -> list[Match]:
        """Returns the matches of each level. They are looked up once for a prompt until the next update."""
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

    # Load of this frontend.

    @contextmanager
    def reserve(self, instance: Instance, load: Load) -> Iterator[None]:
        """Counts ``load`` at ``instance`` within the block."""
        self._workload.begin(instance.id, load)
        try:
            yield
        finally:
            self._workload.end(instance.id, load)

    def prefilled(self, instance: Instance, prompt: PromptKeys, now_s: float) -> None:
        """Notes that ``instance`` has computed the prompt. If it reports no KV events, it is assumed to keep it for a
        while."""
        self._last = None
        for worker, gone in self._sent_blocks.expired(now_s):
            self._guessed.remove(worker, gone)
        if instance.reports_kv:
            return
        landmarks = prompt.landmarks(instance.model.block_size)
        gone = self._sent_blocks.note(instance.id, landmarks, now_s)
        self._guessed.store(instance.id, landmarks)
        self._guessed.remove(instance.id, gone)


def _leading(match: Match, bit: int) -> int:
    """Returns the number of blocks that the worker of this bit holds."""
    for blocks, workers in match:
        if workers & bit:
            return blocks
    return 0


def _named_by_client(name: str, pool: Sequence[Instance]) -> Instance:
    found = next((instance for instance in pool if instance.name == name), None)
    if found is None:
        names = ", ".join(sorted(instance.name for instance in pool))
        hint = suggested_to_client(name, (instance.name for instance in pool)) or ";"
        reason = f"names {shown(name)}{hint}" if name else "is missing;"
        raise BadRequest(
            f"the header {INSTANCE_HEADER} {reason} workers that can take this request now: {names}",
            param=INSTANCE_HEADER,
            code="instance_unknown",
        )
    return found
