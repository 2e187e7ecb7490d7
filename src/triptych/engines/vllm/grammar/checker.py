"""Admits only grammars that were tried to vLLM's engine, and only as many at once as its steps have time for."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from triptych.cache.byte_semaphore import ByteSemaphore
from triptych.cache.lru import ByteLru
from triptych.cache.single_flight import SingleFlight
from triptych.contracts.errors import BadRequest, DeadlineExceeded, Unavailable
from triptych.contracts.metric import Metric, counter, gauge
from triptych.contracts.request import Guided
from triptych.engines.vllm.grammar.place import place_of
from triptych.engines.vllm.grammar.process import GrammarProcess, ProcessLost
from triptych.engines.vllm.grammar.wire import Setup, Verdict

JSON_OBJECT = '{"type": "object"}'
"""The schema that vLLM compiles for ``json_object``."""
FIELD = "response_format.json_schema.schema"
KEPT_BYTES = 4 << 20
"""Size of the cache of verdicts, which have some 300 bytes each."""
TIMED_OUT_KEPT_S = 60.0
"""Time after which a trial that took too long is repeated, because the machine may have been busy."""
RESTARTS_APART_S = 1.0
WAIT_S = 2.0
"""Longest wait for a trial to begin, for the process to come back, and for room in the engine's steps."""

_HELD_UP = "the worker's machine was too busy to compile it in time; try again"

log = logging.getLogger("triptych.vllm")


@dataclass
class Counts:
    """Counts of trials and their outcomes since the start."""

    accepted: int = 0
    refused: int = 0
    timed_out: int = 0
    cache_hits: int = 0
    """Requests whose verdict was cached."""
    unavailable: int = 0


class Process(Protocol):
    """A process for trials; see ``GrammarProcess``."""

    @property
    def alive(self) -> bool: ...

    async def ready(self, setup: Setup) -> None: ...

    async def try_schema(self, schema: str) -> Verdict: ...

    async def close(self) -> None: ...


class GrammarChecker:
    """Has the process try each grammar once. Owns the process, and starts another one if it is lost.

    Call ``begin`` before the engine starts and ``ready`` once its tokenizer is known. ``close`` may be called twice.
    """

    def __init__(
        self,
        *,
        trials: int,
        step_budget_s: float,
        begin: Callable[[], Awaitable[Process]] = GrammarProcess.begin,
        wait_s: float = WAIT_S,
    ) -> None:
        """At most ``trials`` run at once. The costs of all running requests' tokens may sum up to ``step_budget_s``."""
        self._begin = begin
        self._wait_s = wait_s
        self._slots = asyncio.Semaphore(trials)
        self._steps = ByteSemaphore(max(1, int(step_budget_s * 1e6)))
        """The budget in microseconds (a ``ByteSemaphore`` counts anything)."""
        self._verdicts: ByteLru[bytes, tuple[Verdict, float]] = ByteLru(KEPT_BYTES)
        self._flights: SingleFlight[bytes, Verdict] = SingleFlight("grammar trial")
        self._process: Process | None = None
        self._setup: Setup | None = None
        self._back = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.counts = Counts()

    async def begin(self) -> None:
        self._process = await self._begin()

    async def ready(self, setup: Setup) -> None:
        """Waits until the process can try grammars. Raises ProcessLost if it does not start."""
        assert self._process is not None
        self._setup = setup
        await self._process.ready(setup)
        self._back.set()

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await self._flights.close()
        if self._process is not None:
            await self._process.close()

    async def check(self, guided: Guided | None) -> Verdict | None:
        """Returns the verdict on an accepted grammar; None if the request has none.

        Raises BadRequest for a grammar that is invalid or too costly, Unavailable if it cannot be tried now, and
        DeadlineExceeded if the machine was too busy for its trial.
        """
        if guided is None:
            return None
        schema = JSON_OBJECT if guided.schema is None else guided.schema
        key = hashlib.blake2b(schema.encode(), digest_size=16).digest()
        verdict = self._known(key)
        if verdict is None:
            verdict = await self._flights.run(key, lambda: self._try(key, schema))
        if verdict.outcome == "sound":
            return verdict
        code = "invalid_schema" if verdict.outcome == "invalid" else "schema_too_costly"
        field = FIELD + place_of(schema, verdict.reason)
        raise BadRequest(f"{field}: {verdict.reason}", param=field, code=code)

    @asynccontextmanager
    async def admitted(self, guided: Guided | None) -> AsyncIterator[None]:
        """Admits a request under ``guided`` to the engine, within the block. Raises as ``check`` does."""
        verdict = await self.check(guided)
        if verdict is None:
            yield
            return
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._wait_s):
                    await held.enter_async_context(self._steps.take(int(verdict.step_s * 1e6)))
            except TimeoutError:
                raise self._unavailable("the grammars of other requests take all time between tokens") from None
            yield

    def _known(self, key: bytes) -> Verdict | None:
        kept = self._verdicts.get(key)
        if kept is None or kept[1] < time.monotonic():
            return None
        self.counts.cache_hits += 1
        return kept[0]

    async def _try(self, key: bytes, schema: str) -> Verdict:
        """Runs a trial, and repeats it in another process if the first one was lost."""
        for _ in range(2):
            try:
                verdict = await self._trial(schema)
            except ProcessLost:
                self._restart()
                continue
            if verdict.outcome == "killed":
                log.warning("a grammar's trial was lost: %s", verdict.reason)
                if verdict.timed_out:  # another one, here or elsewhere, would take the client's time once more
                    self.counts.unavailable += 1
                    raise DeadlineExceeded(f"{FIELD}: {_HELD_UP}", param=FIELD, code="grammar_timeout")
                continue
            self._keep(key, verdict)
            return verdict
        raise self._unavailable("the process that tries grammars was lost")

    async def _trial(self, schema: str) -> Verdict:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._slots.acquire()
        except TimeoutError:
            raise self._unavailable("other requests' grammars are being compiled") from None
        try:
            async with asyncio.timeout(self._wait_s):
                await self._back.wait()
            assert self._process is not None
            return await self._process.try_schema(schema)
        except TimeoutError:
            raise self._unavailable("the process that tries grammars is starting") from None
        finally:
            self._slots.release()

    def _keep(self, key: bytes, verdict: Verdict) -> None:
        until = time.monotonic() + TIMED_OUT_KEPT_S if verdict.timed_out else float("inf")
        self._verdicts.put(key, (verdict, until), 256 + len(verdict.reason))
        self.counts.accepted += verdict.outcome == "sound"
        self.counts.refused += verdict.outcome != "sound"
        self.counts.timed_out += verdict.timed_out

    def _restart(self) -> None:
        """Starts another process, unless one is being started already."""
        if self._process is None or self._process.alive or (self._keeper is not None and not self._keeper.done()):
            return
        log.warning("the process that tries grammars ended; another is started")
        self._back.clear()
        self._keeper = asyncio.create_task(self._start_again(), name="grammar process")

    async def _start_again(self) -> None:
        assert self._setup is not None
        while True:
            if self._process is not None:
                await self._process.close()
            try:
                self._process = await self._begin()
                await self._process.ready(self._setup)
            except (OSError, ProcessLost) as error:
                log.warning("no process that tries grammars: %s", error)
                await asyncio.sleep(RESTARTS_APART_S)
                continue
            self._back.set()
            return

    def _unavailable(self, reason: str) -> Unavailable:
        self.counts.unavailable += 1
        return Unavailable(f"{reason}; try again", code="grammars_busy")

    def metrics(self) -> Iterator[Metric]:
        counts, name = self.counts, "triptych_grammar_"
        yield counter(name + "accepted_total", "Grammars that were accepted after a trial.", counts.accepted)
        yield counter(name + "refused_total", "Grammars refused: invalid or too costly.", counts.refused)
        yield counter(
            name + "timed_out_total", "Grammars refused because their trial exceeded the time limit.", counts.timed_out
        )
        yield counter(name + "cache_hits_total", "Requests whose grammar had a verdict already.", counts.cache_hits)
        yield counter(
            name + "unavailable_total", "Requests refused because no trial or time was available.", counts.unavailable
        )
        step_s = self._steps.taken_bytes / 1e6
        yield gauge(name + "step_seconds", "Time that a token may take under all running grammars.", step_s)
