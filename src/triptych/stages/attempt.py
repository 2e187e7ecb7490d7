"""Makes the calls of a plan, and owns everything that they take until the attempt ends."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass

from msgspec.structs import replace

from triptych.contracts.answer import Timing, TokenDelta
from triptych.contracts.card import Instance
from triptych.contracts.kv_events import Load
from triptych.contracts.request import GenerateRequest, KvHandle
from triptych.contracts.stages import PrefillAnswer, Release
from triptych.router.routing import PromptKeys, Routing
from triptych.stages.calls import Calls
from triptych.stages.compose import Plan
from triptych.stages.excluded import ExcludedWorkers
from triptych.stages.hand_off import STRATEGIES, Start, bare
from triptych.stages.isolation import Isolation, Waiter
from triptych.stages.media_dispatch import MediaDispatch
from triptych.stages.request_state.machine import RequestState
from triptych.stages.stream import Stream


@dataclass(frozen=True)
class Services:
    """Holds what all attempts of a frontend share."""

    calls: Calls
    routing: Routing
    isolation: Isolation
    excluded: ExcludedWorkers
    on_resume: Callable[[], None]
    """Called each time that an answer goes on at another worker."""


@dataclass(frozen=True)
class RequestContext:
    """Holds one request and what all of its attempts share."""

    request: GenerateRequest
    prompt: PromptKeys
    waiter: Waiter
    media: MediaDispatch
    state: RequestState

    def tokens_left(self, routing: Routing, instance: Instance) -> int:
        """Counts the tokens to prefill at ``instance``: the generated ones, and those of the prompt that it lacks."""
        held = routing.held_tokens(instance, self.prompt)
        return max(0, len(self.prompt) - held) + len(self.state.generated)


class Attempt:
    """Carries out one plan. It holds its share of the workers' load, and an exported KV cache until that is read.

    Implements ``hand_off.Calling``.
    """

    def __init__(self, plan: Plan, context: RequestContext, services: Services) -> None:
        self._plan = plan
        self._context = context
        self._state = context.state
        self._services = services
        self._stack = AsyncExitStack()
        self._prefill_load = ExitStack()
        """Holds the load of the prefill until its first token."""
        self._alone = ExitStack()
        """Keeps suspects away while the request is one, until a worker has answered it."""
        self._is_decoding = False
        self._earlier: Timing | None = None
        """Time spent in the stages before the decode. It is added to the times in the last delta."""

    async def deltas(self) -> AsyncGenerator[list[TokenDelta], None]:
        """Yields batches of deltas: whatever waits together. Raises StepFailed for the call that fails.

        Closing the generator cancels the calls at the workers, and releases embeddings and caches that nobody fetches.
        """
        received = self._state.received
        async with self._stack:
            self._take_load()
            await self._encode()
            start = await self._start()
            if start.deltas:
                yield self._received_first(start.deltas, decoded=False)
            if start.kv is None and start.stream is None:
                self._answered()
                return
            stream = start.stream or await self._decode_after(start)
            batch = start.first or await anext(stream, None)
            if batch is None:
                return
            self._decoding(batch, start.answer)
            yield self._received_first(batch, decoded=True)
            async for batch in stream:
                if batch[-1].timing is not None:
                    self._with_times(batch)
                yield received(batch, decoded=True)

    # Calls for the hand-off strategy (``hand_off.Calling``).

    @property
    def request(self) -> GenerateRequest:
        first = self._plan.prefill or self._plan.decode
        media = self._context.media.for_prefill(first)
        return replace(self._context.request, media=media, generated_ids=list(self._state.generated))

    @property
    def giver(self) -> Instance:
        assert self._plan.prefill is not None
        return self._plan.prefill.instance

    @property
    def taker(self) -> Instance:
        return self._plan.decode.instance

    async def prefill(self, request: GenerateRequest) -> PrefillAnswer:
        answer = await self._services.calls.prefill(self.giver, request, self._context.waiter.name)
        self._prefilled(self.giver)
        return answer

    async def decode(self, request: GenerateRequest) -> Stream:
        stream = self._services.calls.generate(self.taker, request, self._context.waiter.name)
        return await self._stack.enter_async_context(stream)

    # The stages.

    async def _encode(self) -> None:
        begun = time.perf_counter()
        await self._context.media.encode(self._plan.encode)
        if self._plan.encode:
            self._earlier = Timing(encode_s=time.perf_counter() - begun)

    async def _start(self) -> Start:
        """Brings the KV cache to the worker that decodes, or begins a decode that prefills by itself."""
        if self._plan.prefill is None:
            return Start([], None, await self.decode(self.request))
        assert self.giver.kv_link is not None
        start = await STRATEGIES[self.giver.kv_link.hand_off](self)
        if start.kv is not None:
            self._stack.callback(self._release_unread, start.kv)
        return start

    async def _decode_after(self, start: Start) -> Stream:
        """Begins the decode of a prompt whose KV cache waits at the worker that prefilled it."""
        return await self.decode(replace(bare(self.request), kv=start.kv))

    def _release_unread(self, kv: KvHandle) -> None:
        if not self._is_decoding:
            self._services.calls.release(self.giver, Release(kv=kv))

    # Counting load.

    def _take_load(self) -> None:
        """Counts the load at both workers. The decode's load counts already while other workers encode and prefill."""
        context, services = self._context, self._services
        first, last = (self._plan.prefill or self._plan.decode).instance, self._plan.decode.instance
        load = Load(kv_tokens=len(context.prompt) + len(self._state.generated), requests=1)
        self._stack.enter_context(services.calls.counted(last.id, 1))
        self._stack.enter_context(services.routing.reserve(last, load))
        self._stack.enter_context(self._prefill_load)
        self._stack.enter_context(self._alone)
        workers = (step.instance.id for step in self._plan.steps)
        self._alone.enter_context(services.isolation.keep_apart(context.waiter.name, workers))
        left = context.tokens_left(services.routing, first)
        self._prefill_load.enter_context(services.routing.reserve(first, Load(prefill_tokens=left)))

    def _prefilled(self, instance: Instance) -> None:
        """Takes note that ``instance`` has the prompt in its KV cache, and got all that it needed of the media."""
        self._prefill_load.close()
        self._context.media.delivered(instance)
        self._services.routing.prefilled(instance, self._context.prompt, time.monotonic())

    def _decoding(self, batch: list[TokenDelta], answer: PrefillAnswer | None) -> None:
        """Takes note of the decode's first batch, and adds the prefill's data on the prompt and on times to it."""
        self._is_decoding = True
        self._answered()
        now = time.monotonic()
        self._services.excluded.answered(self.taker.id, now)
        if self._plan.prefill is None:
            self._prefilled(self.taker)
            return
        self._services.routing.prefilled(self.taker, self._context.prompt, now)
        if answer is None:  # the prefill has done its part, but its answer did not come in time
            self._prefilled(self.giver)
            return
        first = answer.delta
        if batch[0].prompt_tokens or batch[0].cached_tokens:
            batch[0] = replace(batch[0], prompt_tokens=first.prompt_tokens, cached_tokens=first.cached_tokens)
        if first.timing is not None:
            self._earlier = first.timing if self._earlier is None else _sum(self._earlier, first.timing)

    def _received_first(self, deltas: list[TokenDelta], *, decoded: bool) -> list[TokenDelta]:
        resumed = self._state.num_resumed
        deltas = self._state.received(self._with_times(deltas), decoded=decoded)
        if self._state.num_resumed > resumed:
            self._services.on_resume()
        return deltas

    def _answered(self) -> None:
        """Takes note that a worker has answered: the request is no suspect any more."""
        self._alone.close()
        self._services.isolation.answered(self._context.waiter.name)

    def _with_times(self, batch: list[TokenDelta]) -> list[TokenDelta]:
        """Adds the times of the earlier stages to those in the last delta."""
        if (timing := batch[-1].timing) is not None and self._earlier is not None:
            batch[-1] = replace(batch[-1], timing=_sum(timing, self._earlier))
        return batch


def _sum(timing: Timing, other: Timing) -> Timing:
    return Timing(
        preprocess_s=timing.preprocess_s + other.preprocess_s,
        prefill_s=timing.prefill_s + other.prefill_s,
        decode_s=timing.decode_s + other.decode_s,
        encode_s=timing.encode_s + other.encode_s,
    )
