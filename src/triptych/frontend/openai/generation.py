"""Runs all choices of a request through the stages, and answers with a stream or one JSON object."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from triptych.aio.pace import SMALL_BYTES, pace
from triptych.aio.reclaim import clear_traceback
from triptych.cache.memory_budget import Reservation
from triptych.contracts.card import Instance
from triptych.contracts.errors import TriptychError, WorkerLost
from triptych.contracts.request import GenerateRequest
from triptych.frontend.http.admission import RequestSlots
from triptych.frontend.http.asgi import EventStream, Headers, Send, send_pieces
from triptych.frontend.http.failures import SHUTTING_DOWN, as_client_error
from triptych.frontend.openai.answers import Answer, ChoiceResult
from triptych.frontend.openai.choice import Choice, Piece
from triptych.frontend.openai.merged import Merged
from triptych.frontend.openai.unsent import bytes_per_token, max_unsent_bytes
from triptych.observability.metrics import ModelMetrics
from triptych.processor.prompt import Prompt
from triptych.stages.compose import Plan
from triptych.stages.dispatch import Dispatcher

JSON_COST = 8
"""The time to make JSON of log probabilities, as a multiple of the time to move as many bytes."""
LARGE_BYTES = 256 << 10
"""The bytes of log probabilities above which the JSON of a whole answer is made in a thread (10 ms)."""
Batch = tuple[int, list[Piece]]
"""The index of a choice, and pieces of it that came together."""
Pieces = AsyncGenerator[Batch, None]


@dataclass
class Job:
    """One choice: the request that goes to the workers, and the text that is made of their tokens."""

    request: GenerateRequest
    prompt: Prompt
    choice: Choice
    plan: Plan | None = None


@dataclass
class Generation:
    """All choices of one HTTP request."""

    jobs: list[Job]
    answer: Answer
    instances: Callable[[], Sequence[Instance]]
    dispatcher: Dispatcher
    metrics: ModelMetrics
    holder: Reservation
    """The part of the memory budget that this request takes."""
    include_usage: bool = False
    with_timing: bool = False
    plan_header: bool = False
    slots: RequestSlots | None = None
    """The admission of this request's choices; each waits for its slot before it runs. None if there is no limit."""
    tenant: str = ""
    """The client's API key, as a digest: quarantine and caches are kept apart by it."""
    begun: float = field(default_factory=time.perf_counter)

    # The two ways to answer.

    async def stream(self, send: Send, headers: Headers) -> None:
        """Answers with server-sent events.

        Raises an error that comes before the first event. A later one becomes the last event.
        """
        events = EventStream(send, lambda: self._headers(headers))
        opened: set[int] = set()
        self.holder.add(sum(max_unsent_bytes(job.request) for job in self.jobs))
        try:
            async with aclosing(self._pieces()) as batches:
                async for index, pieces in batches:
                    out = [self.answer.chunks(index, piece) for piece in pieces]
                    if index not in opened:
                        opened.add(index)
                        out.insert(0, self.answer.opening(index))
                    data = b"".join(out)
                    await events.write(data)
                    if len(data) > SMALL_BYTES and not pace().spend(JSON_COST * len(data)):
                        await pace().wait_for_budget()
            await events.write(self.answer.end(self.usage() if self.include_usage else None))
        except asyncio.CancelledError:
            if events.started:
                await events.write(self.answer.failed(SHUTTING_DOWN))
                await events.close()
            raise
        except Exception as error:
            if not events.started:
                raise
            client_error = self._client_error(error)
            clear_traceback(error)
            await events.write(self.answer.failed(client_error))
        await events.close()

    async def whole(self, send: Send, headers: Headers) -> None:
        """Answers with one JSON object."""
        results = [ChoiceResult() for _ in self.jobs]
        size = 0
        async with aclosing(self._pieces()) as batches:
            async for index, pieces in batches:
                taken = self._take(results[index], index, pieces)
                size += taken
                if taken > SMALL_BYTES and not pace().spend(JSON_COST * taken):
                    await pace().wait_for_budget()
        extra = {"triptych": self.timing()} if self.with_timing else {}
        whole = partial(self.answer.whole, results, self.usage(), extra)
        is_large = size > LARGE_BYTES
        await send_pieces(send, await asyncio.to_thread(whole) if is_large else whole(), self._headers(headers))

    def _take(self, result: ChoiceResult, index: int, pieces: list[Piece]) -> int:
        """Adds pieces to the result of choice ``index``. Returns the bytes of their log probabilities as JSON."""
        size = 0
        for piece in pieces:
            result.texts.append(piece.text)
            result.finish_reason = piece.finish_reason
            if piece.logprobs:
                size += result.add_logprobs(self.answer.logprob_lists(index, piece.logprobs))
        if size:
            token_bytes = bytes_per_token(self.jobs[0].request)
            self.holder.add(token_bytes * sum(len(piece.logprobs) for piece in pieces))
        return size

    def _client_error(self, error: Exception) -> TriptychError:
        """Returns the error that the client gets in the middle of a stream."""
        client_error = as_client_error(error, self.answer.id)
        self.metrics.stream_error(client_error)
        return client_error

    # Reading all choices at once.

    def _pieces(self) -> Pieces | Merged[Batch]:
        if len(self.jobs) == 1:
            return self._of_job(0)
        return Merged([self._of_job(index) for index in range(len(self.jobs))], self.answer.id)

    async def _of_job(self, index: int) -> Pieces:
        job = self.jobs[index]
        clock = self.metrics.token_clock(self.begun)

        def on_plan(plan: Plan) -> None:
            job.plan = plan
            self.metrics.planned(plan.shape)

        try:
            async with (
                self.slots.slot() if self.slots is not None else nullcontext(),
                aclosing(
                    self.dispatcher.run(job.request, self.instances, on_plan, job.prompt.keys, self.tenant)
                ) as batches,
            ):
                async for deltas in batches:
                    pieces = job.choice.push(deltas)
                    clock.tick(sum(len(delta.token_ids) for delta in deltas))
                    if pieces:
                        yield index, pieces
                    if job.choice.finish_reason is not None:
                        break
        except TriptychError as error:
            raise job.prompt.by_field(error) from error
        if job.choice.finish_reason is None:
            raise WorkerLost("the worker ended its answer without a reason")
        clock.finish(job.choice.counts.prompt, job.choice.counts.completion)

    # Headers, usage and timing.

    def _headers(self, headers: Headers) -> Headers:
        """Adds the plan, which is final once the first worker has answered: until then another may take over."""
        if not self.plan_header or self.jobs[0].plan is None:
            return headers
        return [*headers, (b"x-triptych-plan", str(self.jobs[0].plan).encode())]

    def usage(self) -> dict[str, Any]:
        """Counts tokens as OpenAI does: each prompt once, however many choices it has."""
        prompts = {id(job.prompt): job.choice.counts.prompt or job.prompt.length for job in self.jobs}
        cached = {id(job.prompt): job.choice.counts.cached for job in self.jobs}
        prompt, completion = sum(prompts.values()), sum(job.choice.counts.completion for job in self.jobs)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        }

    def timing(self) -> dict[str, Any]:
        """Returns the seconds that the first choice spent in each stage."""
        job = self.jobs[0]
        worker = msgspec.structs.asdict(job.choice.timing) if job.choice.timing else {}
        if not worker.get("encode_s"):  # media were encoded with the prefill, or there were none
            worker.pop("encode_s", None)
        spent = {"media_s": job.prompt.media_s, "tokenise_s": job.prompt.tokenise_s, **worker}
        return {"timing": {**spent, "total_s": time.perf_counter() - self.begun}, "plan": str(job.plan)}
