"""A discrete model of an engine with continuous batching, without a clock: steps of a token budget over paged blocks.

It schedules as vLLM does. What runs comes first, in order of arrival, with all the tokens that it lacks or as many as
the budget leaves (chunked prefill; a sequence that decodes lacks one); then what waits, after what the prefix cache
has of it. Where blocks are short, the sequence that came last is put back and computed again later.

A step is planned, takes its time elsewhere, and is finished. Steps in which nothing but decoding goes on are planned
many at once, up to the first at which anything changes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from triptych.simulate.blocks import BlockPool
from triptych.simulate.profiles import Profile, Rates


@dataclass(slots=True, eq=False)
class Job:
    """The work of an engine for one request."""

    id: int
    prompt_tokens: int
    output_tokens: int
    """At least 1, and 2 with ``arrived_kv``: the first token was made elsewhere."""
    hashes: Sequence[int] = ()
    """Hashes of the prompt's full blocks, as ``kv.block_hash`` chains them."""
    media: Sequence[tuple[int, int]] = ()
    """(content, tokens) of each medium that is encoded here."""
    arrived_kv: bool = False
    """The prompt's KV cache was computed elsewhere, and is brought along."""
    keep: bool = False
    """Its blocks stay, once it is done, until it is released."""
    cached_tokens: int = -1
    """Tokens at the prompt's start that the prefix cache had; negative until it was looked up."""
    computed: int = 0
    made: int = 0
    blocks: list[int] = field(default_factory=list)
    resumed: bool = False
    """It did not decode in the step before."""
    told_at: int = 0
    """For a ``resumed`` job: when its last token came, for callers with a clock."""

    @property
    def lacks(self) -> int:
        """Tokens to be computed before its next one can be drawn."""
        return self.prompt_tokens + self.made - self.computed


@dataclass(slots=True)
class Step:
    """One step, or ``count`` equal steps of decoding alone."""

    rates: Rates
    work: list[tuple[Job, int]]
    """Tokens to compute for each job in one step."""
    fixed: int
    """Picoseconds of prefill and encoding, in a step that has any; then ``count`` is 1."""
    decodes: int
    context: int
    """Tokens that those which decode read in the first step."""
    count: int

    def duration(self, steps: int) -> int:
        """Picoseconds of the first ``steps``."""
        return self.rates.step * steps + self.fixed + self.rates.decoding(self.decodes, self.context, steps)

    def steps_by(self, elapsed: int) -> int:
        """Returns how many steps have ended, or are running, after so many picoseconds; at least 1."""
        low, high = 1, self.count
        while low < high:
            middle = (low + high) // 2
            if self.duration(middle) >= elapsed:
                high = middle
            else:
                low = middle + 1
        return low


@dataclass(slots=True)
class Finished:
    """The results of a step."""

    first: list[Job] = field(default_factory=list)
    """Their first token is there."""
    resumed: list[Job] = field(default_factory=list)
    """Their next token is there after they did not decode for a while."""
    done: list[Job] = field(default_factory=list)


class EmbeddingCache:
    """Embeddings by content, as many as fit ``tokens``; those used longest ago are dropped."""

    def __init__(self, tokens: int) -> None:
        self._max = tokens
        self._held: OrderedDict[int, int] = OrderedDict()
        self._tokens = 0

    def lacked(self, media: Sequence[tuple[int, int]]) -> int:
        """Tokens of those media that are not here; from now on they are."""
        lacked = 0
        for content, tokens in media:
            if content in self._held:
                self._held.move_to_end(content)
                continue
            lacked += tokens
            self._held[content] = tokens
            self._tokens += tokens
            while self._tokens > self._max and len(self._held) > 1:
                self._tokens -= self._held.popitem(last=False)[1]
        return lacked


class EngineModel:
    """Models an engine one step at a time: ``plan``, then ``finish``."""

    def __init__(self, profile: Profile, block_size: int, *, together: bool = True) -> None:
        """With ``together`` equal steps are planned at once; the results are the same."""
        self._profile = profile
        self._rates = profile.rates
        self._block_size = block_size
        self._together = together
        self.pool = BlockPool(max(1, profile.kv_tokens // block_size), profile.host_kv_tokens // block_size)
        self._read_tokens = 0
        """Read back from host memory in this step."""
        self._embeddings = EmbeddingCache(profile.embedding_cache_tokens)
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.preempted: list[Job] = []
        """The jobs that the last plan preempted."""

    def fits(self, tokens: int) -> bool:
        """Tells whether a prompt and its answer of so many tokens could ever be finished."""
        return self._blocks_for(tokens) <= self.pool.blocks

    def held_tokens(self, hashes: Sequence[int]) -> int:
        """Returns the tokens that the cache has of a prompt of these blocks, from its start."""
        return self.pool.matched(hashes, len(hashes)) * self._block_size

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def release(self, job: Job) -> None:
        """Releases the blocks of a finished job that was to ``keep`` them."""
        self.pool.release(job.blocks)
        job.blocks = []

    def abort(self, job: Job) -> None:
        """Aborts a job. Does nothing for a finished one."""
        if job in self.waiting:
            self.waiting.remove(job)
        elif job in self.running:
            self.running.remove(job)
            self.release(job)

    # A step.

    def plan(self) -> Step | None:
        """Returns the next step; None if there is no work, or none that can be done."""
        self.preempted = []
        self._read_tokens = 0
        budget = self._profile.max_num_batched_tokens
        work = self._run(budget)
        budget -= sum(tokens for _, tokens in work)
        media: list[tuple[int, int]] = []
        if not self.preempted:
            self._admit(budget, work, media)
        return self._step(work, media) if work else None

    def _run(self, budget: int) -> list[tuple[Job, int]]:
        work: list[tuple[Job, int]] = []
        while len(work) < len(self.running) and budget:
            job = self.running[len(work)]
            tokens = min(job.lacks, budget)
            while not self._grow(job, job.computed + tokens):
                self._preempt()
                if len(work) == len(self.running):
                    return work
            work.append((job, tokens))
            budget -= tokens
        return work

    def _preempt(self) -> None:
        job = self.running.pop()
        self.pool.release(job.blocks)
        job.blocks, job.computed, job.resumed = [], 0, True
        self.waiting.appendleft(job)
        self.preempted.append(job)

    def _admit(self, budget: int, work: list[tuple[Job, int]], media: list[tuple[int, int]]) -> None:
        while self.waiting and budget and len(self.running) < self._profile.max_num_seqs:
            job = self.waiting[0]
            below: Sequence[int] = ()
            if job.arrived_kv:
                matched, computed = self.pool.matched(job.hashes, len(job.hashes)), job.prompt_tokens
            else:
                usable = (job.prompt_tokens - 1) // self._block_size
                matched = self.pool.matched(job.hashes, usable)
                below = job.hashes[matched:usable]
                below = below[: self.pool.matched_on_host(below)]
                computed = (matched + len(below)) * self._block_size
            tokens = min(job.prompt_tokens + job.made - computed, budget)
            found = job.hashes[:matched]
            if self._blocks_for(computed + tokens) - matched > self.pool.free - self.pool.idle(found):
                return
            self.waiting.popleft()
            for key in found:
                self.pool.use(key)
            job.blocks = [*found, *self.pool.read_back(below)]
            self._read_tokens += len(below) * self._block_size
            if job.cached_tokens < 0:
                job.cached_tokens = len(job.blocks) * self._block_size
                media.extend(job.media)
            job.computed, job.arrived_kv = computed, False
            self._grow(job, computed + tokens)
            self.running.append(job)
            work.append((job, tokens))
            budget -= tokens

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def _grow(self, job: Job, tokens: int) -> bool:
        """Blocks for the first ``tokens`` of a job; full ones of the prompt by their hashes. False: there are none."""
        full = min(tokens // self._block_size, len(job.hashes))
        missing = self._blocks_for(tokens) - len(job.blocks)
        if missing > self.pool.free:
            return False
        last = len(job.blocks) - 1
        if 0 <= last < full and job.blocks[last] < 0:
            job.blocks[last] = self.pool.name(job.blocks[last], job.hashes[last])
        for index in range(last + 1, last + 1 + missing):
            job.blocks.append(self.pool.take(job.hashes[index] if index < full else None))
        return True

    def _step(self, work: list[tuple[Job, int]], media: Sequence[tuple[int, int]]) -> Step:
        rates = self._rates
        fixed = decodes = context = 0
        for job, tokens in work:
            if tokens == 1 and job.made:
                decodes += 1
                context += job.computed + 1
            else:
                fixed += rates.prefilling(tokens, job.computed)
        if media and (lacked := self._embeddings.lacked(media)):
            fixed += rates.encoding(lacked)
        if self._read_tokens:
            fixed += rates.moving(self._read_tokens * rates.kv_token_bytes)
        count = 1
        if self._together and decodes == len(work) == len(self.running):
            count = min(self._alike(job) for job, _ in work)
        return Step(rates, work, fixed, decodes, context, count)

    def _alike(self, job: Job) -> int:
        """Steps of a job that decodes until it is done, or needs another block."""
        if job.resumed:
            return 1
        return min(job.output_tokens - job.made, len(job.blocks) * self._block_size - job.computed)

    def finish(self, step: Step) -> Finished:
        """Ends ``step``, or ``step.count`` of them."""
        finished = Finished()
        for job, tokens in step.work:
            draws = tokens == job.lacks
            job.computed += tokens * step.count
            if draws:
                job.made += step.count
                self._tell(job, finished)
        if finished.done:
            self.running = [job for job in self.running if job.made < job.output_tokens]
            for job in finished.done:
                if not job.keep:
                    self.release(job)
        return finished

    def _tell(self, job: Job, finished: Finished) -> None:
        if job.made == 1:
            finished.first.append(job)
        elif job.resumed:
            finished.resumed.append(job)
        job.resumed = False
        if job.made >= job.output_tokens:
            finished.done.append(job)
