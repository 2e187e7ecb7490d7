"""Models an engine with continuous batching, without a clock: steps of a token budget over paged blocks.

It schedules as vLLM does. Running jobs come first, in order of arrival. Each gets all the tokens that it has to
compute, or as many as the budget leaves (chunked prefill; a decoding job has one). Then waiting jobs are admitted,
which begin after the part that the prefix cache has. If blocks run out, the job that came last is preempted and
computed again later.

A caller plans a step, lets its time pass, and finishes it. Steps that only decode are planned many at once, up to the
first one at which anything changes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from triptych.simulate.blocks import BlockPool
from triptych.simulate.profiles import Profile, Rates


@dataclass(slots=True, eq=False)
class EngineJob:
    """The work of an engine for one request."""

    id: int
    prompt_tokens: int
    output_tokens: int
    """At least 1; at least 2 with ``arrived_kv``, because the first token was made elsewhere."""
    hashes: Sequence[int] = ()
    """Hashes of the prompt's full blocks, as ``kv.block_hash`` chains them."""
    media: Sequence[tuple[int, int]] = ()
    """(content, tokens) of each medium that is encoded here."""
    arrived_kv: bool = False
    """Whether the prompt's KV cache was computed elsewhere and comes with the job."""
    keep: bool = False
    """Whether the blocks of the finished job stay until ``release``."""
    cached_tokens: int = -1
    """Tokens at the prompt's start that the prefix cache had; negative until it was looked up."""
    computed: int = 0
    made: int = 0
    blocks: list[int] = field(default_factory=list)
    resumed: bool = False
    """Whether the job did not decode in the step before."""
    last_token_at: int = 0
    """The time of a ``resumed`` job's last token, set by the caller, who has the clock."""

    @property
    def tokens_to_compute(self) -> int:
        """Number of tokens to compute before the next one can be drawn."""
        return self.prompt_tokens + self.made - self.computed


@dataclass(slots=True)
class EngineStep:
    """One step, or ``count`` equal steps of decoding alone."""

    rates: Rates
    work: list[tuple[EngineJob, int]]
    """The jobs, each with the number of tokens to compute for it in one step."""
    fixed: int
    """The time of prefill and encoding in picoseconds. If it is above 0, ``count`` is 1."""
    decodes: int
    context: int
    """Number of tokens in the KV caches that all decoding jobs read in the first step."""
    count: int

    def duration(self, steps: int) -> int:
        """Returns the time of the first ``steps`` in picoseconds."""
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
class StepResult:
    """The results of a step."""

    first: list[EngineJob] = field(default_factory=list)
    """Jobs that have made their first token."""
    resumed: list[EngineJob] = field(default_factory=list)
    """Jobs that have made a token after a pause."""
    done: list[EngineJob] = field(default_factory=list)


class EmbeddingCacheModel:
    """Models an encoder's cache: embeddings by content, up to ``tokens``; those used longest ago are dropped."""

    def __init__(self, tokens: int) -> None:
        self._max = tokens
        self._held: OrderedDict[int, int] = OrderedDict()
        self._tokens = 0

    def lacked(self, media: Sequence[tuple[int, int]]) -> int:
        """Returns the number of tokens of media that are not cached, and caches them."""
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
        """With ``together``, equal steps are planned at once; the results are the same."""
        self._profile = profile
        self._rates = profile.rates
        self._block_size = block_size
        self._together = together
        self.pool = BlockPool(max(1, profile.kv_tokens // block_size), profile.host_kv_tokens // block_size)
        self._read_tokens = 0
        """Number of tokens read back from host memory in this step."""
        self._embeddings = EmbeddingCacheModel(profile.embedding_cache_tokens)
        self.waiting: deque[EngineJob] = deque()
        self.running: list[EngineJob] = []
        self.preempted: list[EngineJob] = []
        """The jobs that the last plan preempted."""

    def fits(self, tokens: int) -> bool:
        """Tells whether a prompt and its answer of so many tokens could ever be finished."""
        return self._blocks_for(tokens) <= self.pool.blocks

    def held_tokens(self, hashes: Sequence[int]) -> int:
        """Returns the tokens that the cache has of a prompt of these blocks, from its start."""
        return self.pool.matched(hashes, len(hashes)) * self._block_size

    def submit(self, job: EngineJob) -> None:
        """Puts a job into the queue."""
        self.waiting.append(job)

    def release(self, job: EngineJob) -> None:
        """Releases the blocks of a finished job that was to ``keep`` them."""
        self.pool.release(job.blocks)
        job.blocks = []

    def abort(self, job: EngineJob) -> None:
        """Aborts a job. Does nothing for a finished one."""
        if job in self.waiting:
            self.waiting.remove(job)
        elif job in self.running:
            self.running.remove(job)
            self.release(job)

    # A step.

    def plan(self) -> EngineStep | None:
        """Returns the next step, or None if there is no work that can be done."""
        self.preempted = []
        self._read_tokens = 0
        budget = self._profile.max_num_batched_tokens
        work = self._run(budget)
        budget -= sum(tokens for _, tokens in work)
        media: list[tuple[int, int]] = []
        if not self.preempted:
            self._admit(budget, work, media)
        return self._step(work, media) if work else None

    def _run(self, budget: int) -> list[tuple[EngineJob, int]]:
        work: list[tuple[EngineJob, int]] = []
        while len(work) < len(self.running) and budget:
            job = self.running[len(work)]
            tokens = min(job.tokens_to_compute, budget)
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

    def _admit(self, budget: int, work: list[tuple[EngineJob, int]], media: list[tuple[int, int]]) -> None:
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

    def _grow(self, job: EngineJob, tokens: int) -> bool:
        """Takes blocks for the first ``tokens`` of a job. Full blocks of the prompt get their hashes.

        Returns False if there are not enough free blocks.
        """
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

    def _step(self, work: list[tuple[EngineJob, int]], media: Sequence[tuple[int, int]]) -> EngineStep:
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
            count = min(self._equal_steps(job) for job, _ in work)
        return EngineStep(rates, work, fixed, decodes, context, count)

    def _equal_steps(self, job: EngineJob) -> int:
        """Returns the number of steps until a decoding job is done or needs another block."""
        if job.resumed:
            return 1
        return min(job.output_tokens - job.made, len(job.blocks) * self._block_size - job.computed)

    def finish(self, step: EngineStep) -> StepResult:
        """Ends ``step``, which stands for ``step.count`` steps."""
        finished = StepResult()
        for job, tokens in step.work:
            draws = tokens == job.tokens_to_compute
            job.computed += tokens * step.count
            if draws:
                job.made += step.count
                self._sort(job, finished)
        if finished.done:
            self.running = [job for job in self.running if job.made < job.output_tokens]
            for job in finished.done:
                if not job.keep:
                    self.release(job)
        return finished

    def _sort(self, job: EngineJob, finished: StepResult) -> None:
        if job.made == 1:
            finished.first.append(job)
        elif job.resumed:
            finished.resumed.append(job)
        job.resumed = False
        if job.made >= job.output_tokens:
            finished.done.append(job)
