"""Keeps the bounded pool of decoders of a frontend or a worker."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec

from triptych.cache.single_flight import is_cancelled
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError, Unavailable, from_wire
from triptych.contracts.media import FILE_TYPES, Data, DecodableMedium, MediaKind
from triptych.contracts.metric import Metric
from triptych.media.errors import DECODE_FAILED, DECODER_UNAVAILABLE, problem
from triptych.media.sandbox import believe, offered, shared
from triptych.media.sandbox.confinement import Confinement
from triptych.media.sandbox.process import Answer, Decoder, Died, NotBegun
from triptych.media.sandbox.seats import Seat, Seats
from triptych.media.sandbox.verdict import PASSED_OVER, Cause, Verdict, verdict
from triptych.media.sandbox.wire import INLINE_BYTES, MAX_FAULT_CHARS, Done, Job
from triptych.media.sandbox.work import SandboxCounts, Work

log = logging.getLogger("triptych.media")

MAX_WORKERS = 8
THREADS = 2
"""Number of threads that start and reap processes and fill shared memory, which would block the event loop."""


class _Ask(NamedTuple):
    """Describes a job for a decoder, and how its answer is checked."""

    task: Literal["inspect", "decode"]
    medium: DecodableMedium
    item: str
    lent_bytes: int
    check: Callable[[Done, int], None]
    """Raises Disbelieved."""


class Sandbox:
    """Inspects and decodes media in child processes: at most ``media_decode_workers``, started when needed.

    Belongs to one event loop, which it never blocks. Jobs are served in their order; the callers limit how many wait. A
    medium whose decoder dies is tried once more in another decoder (``verdict``). Then its job fails: with BadRequest
    (``media_decode_failed``), at a memory limit with PayloadTooLarge, and for the machine's reasons with Unavailable
    (``media_decoder_unavailable``). Cancelling drops a job that waits, and gives a running job a second to end.
    ``close`` kills the decoders; it may run twice.
    """

    def __init__(self, limits: MediaLimits) -> None:
        """Creates a pool without decoders. Raises ConfigError if decoders must be confined, but cannot be."""
        self._offered = offered.available()
        offered.check(self._offered, limits.media_require_sandbox)
        self.counts = SandboxCounts()
        self._limits = limits
        max_decoders = limits.media_decode_workers or min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._seats = Seats(max_decoders)
        self._decoders: set[Decoder] = set()
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="triptych-sandbox")
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """The process ids of the decoders."""
        return sorted(decoder.pid for decoder in self._decoders)

    @property
    def confinement(self) -> Confinement:
        """The confinement of the weakest decoder; without decoders, that which the system offers."""
        held = (decoder.confinement for decoder in self._decoders)
        return min(held, key=lambda confinement: confinement.level, default=self._offered)

    def metrics(self) -> tuple[Metric, ...]:
        """Metrics."""
        return (*self.counts.metrics(), *offered.metrics(self.confinement))

    async def inspect(self, kind: MediaKind, data: Data, item: str) -> dict[str, Any]:
        """Inspects a medium as ``media.formats.inspect`` does, in a decoder.

        Errors are about the field ``item``. It also raises the errors that the class names.
        """
        medium = FILE_TYPES[kind](content_hash="", data=data)

        def check(done: Done, lent_bytes: int) -> None:
            believe.check_facts(done.facts, kind, self._limits)

        return (await self._run(_Ask("inspect", medium, item, 0, check))).done.facts

    async def decode(self, medium: DecodableMedium, item: str) -> Any:
        """Returns a PIL picture in RGB, or a numpy array, as ``decode_image`` and its like do. Raises as they do.

        Large results lie in memory that the decoder filled, without a copy. The last reference gives the memory back,
        and it is filled again for another result of about that size.
        """
        # Not imported above: the frontend has neither numpy nor Pillow.
        from triptych.media.sandbox.result import array_of, picture_of

        expected = believe.expected_of(medium, self._limits, item)

        def check(done: Done, lent_bytes: int) -> None:
            believe.check_decoded(done, expected, lent_bytes)

        done, memory = await self._run(_Ask("decode", medium, item, expected.lent_bytes, check))
        return (array_of if done.dtype else picture_of)(done, memory)

    async def close(self) -> None:
        self._closed = True
        decoders = list(self._decoders)
        for decoder in decoders:
            decoder.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(decoder.wait() for decoder in {*decoders, *self._decoders}))
        self._decoders.clear()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    async def _run(self, ask: _Ask) -> Answer:
        """Has ``ask`` answered. Raises the answer's error, and the errors that the class names."""
        if self._closed:
            raise _shut_down()
        work = Work(self.counts)
        running = asyncio.create_task(self._work(work, ask), name=f"media-{ask.task}")
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)
        try:
            answer = await asyncio.shield(running)
        except asyncio.CancelledError:
            if running.cancelled() and not is_cancelled():  # by ``close``
                raise _shut_down() from None
            running.add_done_callback(_discard)
            work.wanted = False
            if work.decoder is None or not work.begun:
                running.cancel()
            else:
                work.decoder.hurry()
            raise
        except Died as died:
            raise self._failed(died, verdict(work.causes), ask) from None
        if answer.done.error is not None:
            raise from_wire(believe.checked_error(answer.done.error, ask.item))
        return answer

    async def _work(self, work: Work, ask: _Ask) -> Answer:
        """Runs a job, again if its decoder dies. Raises Died, whose cause is the last of ``work.causes``."""
        self.counts.waiting += 1
        try:
            async with self._seats.take(len(ask.medium.data) <= INLINE_BYTES) as seat:
                while True:
                    try:
                        return await self._attempt(work, ask, seat)
                    except Died as died:
                        work.causes.append(died.cause)
                        if self._closed or not work.wanted or verdict(work.causes) is not Verdict.AGAIN:
                            raise
                        log.warning("%s is tried in another decoder: %s", ask.medium.kind, died.words)
                        self.counts.retried += 1
                        work.pause()
        finally:
            work.end()
            self.counts.workers = len(self._decoders)

    async def _attempt(self, work: Work, ask: _Ask, seat: Seat) -> Answer:
        """Attempts a job once, at the decoder of ``seat``. Raises Died."""
        try:
            job = await self._job(work, ask)
            for _ in range(PASSED_OVER):
                async with seat.starting:
                    decoder = work.decoder = await self._decoder(seat)
                try:
                    return await self._answer(decoder, job, work, ask)
                except NotBegun:  # another job ended the decoder
                    self._decoders.discard(decoder)
        except MemoryError as error:
            raise Died(Cause.SHORT, "no memory for its job") from error
        except OSError as error:
            raise Died(Cause.SHORT, error.strerror or "no answer in time") from error
        raise Died(Cause.SHORT, "decoders died of other media before its turn")

    async def _answer(self, decoder: Decoder, job: Job, work: Work, ask: _Ask) -> Answer:
        self._seats.look()  # for who may wait behind this one
        try:
            answer = await decoder.run(job, work.fds, ask.lent_bytes, work.begin, partial(_check, ask))
        except NotBegun:
            raise
        except BaseException:
            if work.begun:
                decoder.kill()
                self._decoders.discard(decoder)
            raise
        if answer.done.exhausted or answer.done.short:
            await self._retire(decoder)
            if answer.done.exhausted:
                raise Died(Cause.EXHAUSTED, "it needs too much memory")
            raise Died(Cause.SHORT, "the machine had not enough memory")
        if answer.done.fault:
            await self._retire(decoder)
            log.error("decoder %d: %s", decoder.pid, believe.printable(answer.done.fault, MAX_FAULT_CHARS))
            raise Died(Cause.CRASHED, "it raised an error of its own; the log has it")
        if decoder.is_worn:
            await self._retire(decoder)
        return answer

    async def _job(self, work: Work, ask: _Ask) -> Job:
        """Returns the job for ``ask``, and shares its data if they are large. Raises OSError."""
        size = len(ask.medium.data)
        if size <= INLINE_BYTES:
            return Job(ask.task, ask.medium, ask.item)
        if not work.fds:
            try:
                filling = self._threads.submit(shared.filled, ask.medium.data)
            except RuntimeError as error:  # no thread can be had
                raise OSError(errno.EAGAIN, str(error)) from None
            try:
                work.fds.append(await asyncio.wrap_future(filling))
            except asyncio.CancelledError:
                filling.add_done_callback(_close)
                raise
        return Job(ask.task, msgspec.structs.replace(ask.medium, data=b""), ask.item, size)

    async def _decoder(self, seat: Seat) -> Decoder:
        """Returns the seat's decoder, or starts one. Raises OSError."""
        if seat.decoder is not None:
            if seat.decoder.alive:
                return seat.decoder
            if seat.decoder in self._decoders:
                log.warning("decoder %d died while it was idle", seat.decoder.pid)
                await self._retire(seat.decoder)
        seat.decoder = None
        decoder = await Decoder.start(self._limits, self._threads)
        if decoder.confinement.level < self._offered.level:
            log.warning("decoder %d is confined by %s only", decoder.pid, decoder.confinement)
        self._decoders.add(decoder)
        seat.decoder = decoder
        return decoder

    async def _retire(self, decoder: Decoder) -> None:
        decoder.kill()
        self._decoders.discard(decoder)
        await decoder.wait()

    def _failed(self, died: Died, verdict: Verdict, ask: _Ask) -> TriptychError:
        """Returns the error for the request: 4xx if the medium is at fault, 503 if the machine is."""
        if self._closed:
            return _shut_down()
        noun, limits = ask.medium.noun, self._limits
        cls: type[TriptychError] = BadRequest
        code = DECODE_FAILED
        if verdict is Verdict.MACHINE:
            self.counts.unavailable += 1
            cls, code = Unavailable, DECODER_UNAVAILABLE
            reason = f"the {noun} could not be decoded now, as the server is short of memory or processes; try again"
        elif died.cause is Cause.TIMED_OUT:
            self.counts.timed_out += 1
            reason = (
                f"the {noun} takes longer to decode than the limit of {limits.media_decode_timeout_s:g} s "
                "(--media-decode-timeout-s)"
            )
        elif died.cause is Cause.EXHAUSTED:
            self.counts.out_of_memory += 1
            cls = PayloadTooLarge
            reason = (
                f"the {noun} needs more memory to decode than the limit of {limits.media_decode_memory_mib} MiB "
                "(--media-decode-memory-mib)"
            )
        else:
            self.counts.crashed += 1
            reason = f"the {noun} made its decoder fail: {died.words}"
        log.warning("%s: %s", reason, died.words)
        return problem(cls, ask.item, code, reason)


def _check(ask: _Ask, done: Done, lent_bytes: int) -> None:
    """Raises Disbelieved."""
    if done.exhausted or done.short or done.fault:
        return
    if done.error is not None:
        believe.checked_error(done.error, ask.item)
    else:
        ask.check(done, lent_bytes)


def _close(filling: Future[int]) -> None:
    """Closes shared memory that nobody uses any more."""
    if not filling.cancelled() and filling.exception() is None:
        os.close(filling.result())


def _discard(task: asyncio.Task[Answer]) -> None:
    """Marks the error of a job as seen: nobody waits for it, and it is not to be reported as missed."""
    if not task.cancelled():
        task.exception()


def _shut_down() -> Unavailable:
    return Unavailable("the server is shutting down; try again", code="shutting_down")
