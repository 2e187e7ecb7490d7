"""The bounded pool of decoders that a frontend or a worker has."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from triptych.cache.single_flight import is_cancelled
from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, TriptychError, Unavailable, from_wire
from triptych.contracts.request import Data, MediaKind, Medium
from triptych.contracts.stages import Sample
from triptych.media.errors import DECODE_FAILED, problem
from triptych.media.sandbox import shared
from triptych.media.sandbox.process import Answer, Decoder, Died, NotBegun
from triptych.media.sandbox.seats import Seat, Seats
from triptych.media.sandbox.wire import INLINE_BYTES, Job
from triptych.memory import close_elsewhere

log = logging.getLogger("triptych.media")

MOST_WORKERS = 8
THREADS = 2
"""Start and reap processes and fill shared memory: what would block the event loop."""
_NOUNS = {"image": "picture", "video": "video", "audio": "sound"}


@dataclass(eq=False)
class SandboxCounts:
    """What became of jobs, and how many decoders there are."""

    workers: int = 0
    busy: int = 0
    waiting: int = 0
    crashed: int = 0
    timed_out: int = 0
    exhausted: int = 0

    def samples(self) -> tuple[Sample, ...]:
        """Metrics."""
        name = "triptych_media_decode_"
        return (
            Sample(name + "workers", "gauge", "Processes that read and decode media.", self.workers),
            Sample(name + "busy", "gauge", "Such processes that work on a medium.", self.busy),
            Sample(name + "waiting", "gauge", "Media that wait for such a process.", self.waiting),
            Sample(name + "crashed", "counter", "Media at which their decoder died.", self.crashed),
            Sample(name + "timed_out", "counter", "Media whose decoding took too long.", self.timed_out),
            Sample(name + "exhausted", "counter", "Media whose decoding needed too much memory.", self.exhausted),
        )


@dataclass(eq=False)
class _Work:
    """A job on its way; ``decoder`` is whose it is, once it has begun."""

    counts: SandboxCounts
    decoder: Decoder | None = None
    begun: bool = False
    fds: list[int] = field(default_factory=list)

    def begin(self) -> None:
        """Its turn has come."""
        self.begun = True
        self.counts.waiting -= 1
        self.counts.busy += 1

    def end(self) -> None:
        for fd in self.fds:
            close_elsewhere(fd)
        if self.begun:
            self.counts.busy -= 1
        else:
            self.counts.waiting -= 1


class Sandbox:
    """Inspects and decodes media in child processes: at most ``media_decode_workers``, started when needed.

    For one event loop, which nothing here blocks. First come, first served; what waits is bounded by the callers'
    own bounds. A decoder that dies or hangs fails the medium that it worked on, with BadRequest
    (``media_decode_failed``), one that runs out of memory with PayloadTooLarge, and another takes its place. Cancelling
    drops a job that waits, and gives one under way a second to end. ``close`` kills what runs; it may run twice.
    """

    def __init__(self, limits: MediaLimits) -> None:
        self.counts = SandboxCounts()
        self._limits = limits
        most = limits.media_decode_workers or min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        self._seats = Seats(most)
        self._decoders: set[Decoder] = set()
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="triptych-sandbox")
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Of the decoders that there are."""
        return sorted(decoder.pid for decoder in self._decoders)

    async def inspect(self, kind: MediaKind, data: Data, item: str) -> dict[str, Any]:
        """What ``media.inspect`` gives, and raises, about the field ``item``; and what the class says."""
        medium = Medium(kind=kind, content_hash="", format="", data=data)
        return (await self._run("inspect", medium, item)).done.facts

    async def decode(self, medium: Medium, item: str, expected_bytes: int = 0) -> Any:
        """A PIL picture in RGB, or a numpy array, as ``decode_image`` and its like give. Raises as they do.

        Large ones lie in memory that the decoder filled, without a copy; it is given back with the last reference, and
        filled again where another one's ``expected_bytes`` fit.
        """
        # Not imported above: the frontend has neither numpy nor Pillow.
        from triptych.media.sandbox.result import array_of, picture_of

        try:
            done, memory = await self._run("decode", medium, item, expected_bytes)
            return (array_of if done.dtype else picture_of)(done, memory)
        except (OSError, ValueError) as error:
            raise TriptychError(f"{item}: what was decoded could not be taken over: {error}") from error

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

    async def _run(self, task: Any, medium: Medium, item: str, expected_bytes: int = 0) -> Answer:
        """Raises the answer's error, and what the class says."""
        if self._closed:
            raise _shut_down()
        work = _Work(self.counts)
        running = asyncio.create_task(self._work(work, task, medium, item, expected_bytes), name=f"media-{task}")
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)
        try:
            answer = await asyncio.shield(running)
        except asyncio.CancelledError:
            if running.cancelled() and not is_cancelled():  # by ``close``
                raise _shut_down() from None
            running.add_done_callback(_discard)
            if work.decoder is None or not work.begun:
                running.cancel()
            else:
                work.decoder.hurry()
            raise
        except Died as died:
            raise self._death(died, medium.kind, item) from None
        if answer.done.exhausted:
            raise self._exhausted(medium.kind, item)
        if answer.done.error is not None:
            raise from_wire(answer.done.error)
        return answer

    async def _work(self, work: _Work, task: Any, medium: Medium, item: str, expected_bytes: int) -> Answer:
        self.counts.waiting += 1
        try:
            async with self._seats.take(len(medium.data) <= INLINE_BYTES) as seat:
                job = await self._job(work, task, medium, item)
                while True:
                    decoder = work.decoder = await self._decoder(seat)
                    try:
                        return await self._answer(decoder, job, work, expected_bytes)
                    except NotBegun:  # what the decoder died of was another's doing
                        self._decoders.discard(decoder)
        finally:
            work.end()
            self.counts.workers = len(self._decoders)

    async def _answer(self, decoder: Decoder, job: Job, work: _Work, expected_bytes: int) -> Answer:
        self._seats.look()  # for who may wait behind this one
        try:
            limit_s = self._limits.media_decode_timeout_s
            answer = await decoder.run(job, work.fds, expected_bytes, limit_s, work.begin)
        except NotBegun:
            raise
        except BaseException:
            if work.begun:
                decoder.kill()
                self._decoders.discard(decoder)
            raise
        if answer.done.exhausted:
            await self._retire(decoder)
        return answer

    async def _job(self, work: _Work, task: Any, medium: Medium, item: str) -> Job:
        size = len(medium.data)
        if size <= INLINE_BYTES:
            return Job(task, medium, item)
        filling = self._threads.submit(shared.filled, medium.data)
        try:
            work.fds.append(await asyncio.wrap_future(filling))
        except asyncio.CancelledError:
            filling.add_done_callback(_close)
            raise
        except OSError as error:
            raise Unavailable(f"{item}: no memory to decode it in: {error.strerror}", code=DECODE_FAILED) from error
        return Job(task, msgspec.structs.replace(medium, data=b""), item, size)

    async def _decoder(self, seat: Seat) -> Decoder:
        """The seat's, else a new one."""
        if seat.decoder is not None:
            if seat.decoder.alive:
                return seat.decoder
            if seat.decoder in self._decoders:
                log.warning("decoder %d died while it was idle", seat.decoder.pid)
                await self._retire(seat.decoder)
        seat.decoder = None
        try:
            decoder = await Decoder.start(self._limits, self._threads)
        except OSError as error:
            raise Unavailable(f"no decoder can be started: {error.strerror}", code=DECODE_FAILED) from error
        self._decoders.add(decoder)
        seat.decoder = decoder
        return decoder

    async def _retire(self, decoder: Decoder) -> None:
        decoder.kill()
        self._decoders.discard(decoder)
        await decoder.wait()

    def _death(self, died: Died, kind: MediaKind, item: str) -> TriptychError:
        if self._closed:
            return _shut_down()
        if died.timed_out:
            self.counts.timed_out += 1
            reason = (
                f"the {_NOUNS[kind]} takes longer to decode than the limit of "
                f"{self._limits.media_decode_timeout_s:g} s (--media-decode-timeout-s)"
            )
        else:
            self.counts.crashed += 1
            reason = f"the {_NOUNS[kind]} made its decoder fail: {died.cause}"
        log.warning("%s", reason)
        return problem(BadRequest, item, DECODE_FAILED, reason)

    def _exhausted(self, kind: MediaKind, item: str) -> TriptychError:
        self.counts.exhausted += 1
        reason = (
            f"the {_NOUNS[kind]} needs more memory to decode than the limit of "
            f"{self._limits.media_decode_memory_mib} MiB (--media-decode-memory-mib)"
        )
        log.warning("%s", reason)
        return problem(PayloadTooLarge, item, DECODE_FAILED, reason)


def _close(filling: Future[int]) -> None:
    """Close what was filled for nobody."""
    if not filling.cancelled() and filling.exception() is None:
        os.close(filling.result())


def _discard(task: asyncio.Task[Answer]) -> None:
    """Nobody waits for what a job came to; its error is not to be reported as one that was missed."""
    if not task.cancelled():
        task.exception()


def _shut_down() -> Unavailable:
    return Unavailable("the server is shutting down; try again", code="shutting_down")
