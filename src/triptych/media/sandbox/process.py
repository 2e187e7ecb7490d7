"""Runs one decoder, a child process that works on one job while the next may already wait at it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from triptych.aio.memory import Mapping
from triptych.config import env
from triptych.config.media import MIB, MediaLimits
from triptych.contracts.shortage import is_short
from triptych.media.sandbox.believe import Disbelieved
from triptych.media.sandbox.confinement import WEAK, Confinement
from triptych.media.sandbox.readable import MEDIA_PACKAGES, folders_for
from triptych.media.sandbox.spare import Spares
from triptych.media.sandbox.spawn import Child, spawn
from triptych.media.sandbox.verdict import Cause, cause_of
from triptych.media.sandbox.wire import MESSAGE_BYTES, START_TIMEOUT_S, Done, Job, Ready, Setup, pair

log = logging.getLogger("triptych.media")

_ENCODER = msgspec.msgpack.Encoder()
_DONE = msgspec.msgpack.Decoder(Done)
_READY = msgspec.msgpack.Decoder(Ready)
_READY_BYTES = 1 << 10
COMMAND = ("-m", "triptych.media.sandbox.child")
EXIT_S = 2.0
"""Time that a decoder has to end after its socket was closed."""
ABANDONED_S = 1.0
"""Time that a job has once nobody waits for it: up to this, letting it end is cheaper than starting a process."""


class Died(Exception):
    """Raised if the decoder has ended, or cannot be used any more. ``words`` say how, in words for the client."""

    def __init__(self, cause: Cause, words: str) -> None:
        super().__init__(words)
        self.cause = cause
        self.words = words


class NotBegun(Exception):
    """Raised if the decoder has ended before it began the job: another decoder may take it."""


class Answer(NamedTuple):
    done: Done
    memory: Mapping | None
    """The memory with the decoded medium, if it is large."""


@dataclass(eq=False)
class _Pending:
    """A job that waits for its answer."""

    message: bytes
    fds: list[int]
    begin: Callable[[], None]
    check: Callable[[Done], None]
    """Raises Disbelieved."""
    answer: asyncio.Future[Done]
    sent: bool = False


class Decoder:
    """A child process and its socket, for one event loop, which it never blocks. ``kill`` ends it for good.

    It answers jobs in their order, each within a time limit that starts when the job begins.
    """

    def __init__(
        self, process: Child, end: socket.socket, reaper: Executor, confinement: Confinement, limits: MediaLimits
    ) -> None:
        self.confinement = confinement
        self._limit_s = limits.media_decode_timeout_s
        self._worn_bytes = limits.media_decode_memory_mib * MIB
        self._process = process
        self._socket = end
        self._reaper = reaper
        self._loop = asyncio.get_running_loop()
        self._spares = Spares()
        self._jobs: deque[_Pending] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._ended_for: Died | None = None
        """The reason why this side ended the decoder."""
        self._closed = False
        self._loop.add_reader(end, self._readable)

    @classmethod
    async def start(cls, limits: MediaLimits, executor: Executor) -> Decoder:
        """Starts a process. ``executor`` runs what would block. Raises OSError if no process can be had."""
        try:
            starting = executor.submit(_spawn, limits)
        except RuntimeError as error:  # no thread can be had
            raise OSError(errno.EAGAIN, str(error)) from None
        try:
            process, end, confinement = await asyncio.wrap_future(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_drop)
            raise
        return cls(process, end, executor, confinement, limits)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._closed and self._process.poll() is None

    @property
    def is_worn(self) -> bool:
        """Whether all the memory that was ever lent to it, which it may have kept, could exceed its limit."""
        return self._spares.fresh_bytes > self._worn_bytes

    @property
    def jobs(self) -> int:
        """Number of jobs of this decoder: the running one, and those that wait."""
        return len(self._jobs)

    async def run(
        self, job: Job, fds: list[int], lent_bytes: int, begin: Callable[[], None], check: Callable[[Done, int], None]
    ) -> Answer:
        """Runs ``job``, and returns its answer. Memory of ``lent_bytes`` is lent for it, if that is more than 0.

        ``begin`` is called when the job's turn comes; ``fds`` may be closed afterwards. ``check`` gets the answer and
        the number of bytes lent, and raises Disbelieved. Raises Died, or NotBegun if the job's turn had not come; the
        decoder has then ended. Raises OSError if there is no memory to lend. Cancelling only drops the answer: the
        caller has to ``hurry`` a job that has begun.
        """
        if self._closed:
            raise NotBegun
        loan = self._spares.take(lent_bytes) if lent_bytes else None
        size_bytes = 0 if loan is None else loan.mapping.size_bytes
        try:
            if loan is not None:
                job, fds = replace(job, into_bytes=size_bytes), [*fds, loan.fd]
            self._spares.note(job.shared_bytes)
            message = _ENCODER.encode(job)
            answer: asyncio.Future[Done] = self._loop.create_future()
            pending = _Pending(message, fds, begin, lambda done: check(done, size_bytes), answer)
            self._jobs.append(pending)
            if len(self._jobs) == 1:
                self._begin()
            else:
                self._send(pending)
            done = await answer
        except EOFError:
            raise await self._cause() from None
        finally:
            if loan is not None and not loan.kept:
                os.close(loan.fd)
        return Answer(done, loan.mapping if loan is not None and done.lent else None)

    def hurry(self) -> None:
        """Shortens the running job's time limit, because nobody waits for the job any more."""
        if self._timer is not None and self._jobs:
            self._set_timer(ABANDONED_S)

    def kill(self) -> None:
        """Kills the process at once, without waiting: ``wait`` tells when it is gone. May be called twice."""
        self._process.kill()
        self._ended()

    async def wait(self) -> int:
        """Returns the exit status of a process that was killed or has ended."""
        return await asyncio.shield(self._loop.run_in_executor(self._reaper, self._process.wait))

    def _begin(self) -> None:
        """Starts the time limit of the first job, whose turn has come."""
        while self._jobs[0].answer.done() and not self._jobs[0].sent:
            self._jobs.popleft()
            if not self._jobs:
                return
        first = self._jobs[0]
        if first.answer.done():  # it was cancelled, but the decoder has it
            self._set_timer(ABANDONED_S)
            return
        self._set_timer(self._limit_s)
        first.begin()
        if not first.sent:
            self._send(first)

    def _send(self, pending: _Pending) -> None:
        try:
            socket.send_fds(self._socket, [pending.message], pending.fds)
            pending.sent = True
        except OSError as error:
            if not is_short(error):  # it died just now
                self._ended()
            elif pending is self._jobs[0]:  # another one is sent at its turn
                self._end(Cause.SHORT, f"its job could not be sent: {error.strerror}")

    def _set_timer(self, limit_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(limit_s, self._time_out)

    def _time_out(self) -> None:
        self._end(Cause.TIMED_OUT, "it took too long")

    def _end(self, cause: Cause, words: str) -> None:
        self._ended_for = Died(cause, words)
        self.kill()

    def _readable(self) -> None:
        """Reads answers. Descriptors that come with an answer are never received, as no intact decoder sends any."""
        try:
            message, _, flags, _ = self._socket.recvmsg(MESSAGE_BYTES, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message, flags = b"", 0
        if not message:
            self._ended()
            return
        try:
            if not self._jobs or flags & socket.MSG_TRUNC:
                raise Disbelieved("it says what nobody asked for")
            done = _DONE.decode(message)
            self._jobs[0].check(done)
        except (msgspec.MsgspecError, Disbelieved) as error:
            words = str(error) if isinstance(error, Disbelieved) else "its answer cannot be read"
            log.warning("decoder %d is ended: %s", self.pid, words)
            self._end(Cause.DISBELIEVED, words)
            return
        self._answered(self._jobs.popleft(), done)

    def _answered(self, pending: _Pending, done: Done) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not pending.answer.done():  # somebody waits for it still
            pending.answer.set_result(done)
        if self._jobs:
            self._begin()

    def _ended(self) -> None:
        """Handles the end of the socket: the process gets a moment to end by itself, so that its status says why."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._spares.close()
            self._loop.call_later(EXIT_S, self._end_late)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        error: Exception = EOFError()
        while self._jobs:
            answer = self._jobs.popleft().answer
            if not answer.done():
                answer.set_exception(error)
            error = NotBegun()

    def _end_late(self) -> None:
        if self._process.poll() is None:
            self._end(Cause.DISBELIEVED, "it closed its socket and went on")

    async def _cause(self) -> Died:
        status = await self.wait()
        if self._ended_for is not None:
            return self._ended_for
        cause = cause_of(status)
        if cause is Cause.KILLED:
            return Died(cause, "its process was killed, as the system does where memory runs out")
        if cause is Cause.SHORT:
            return Died(cause, "the machine had no buffer for its answer")
        if status < 0:
            return Died(cause, f"its process ended by signal {-status} ({signal.Signals(-status).name})")
        return Died(cause, f"its process ended with status {status}")


def _spawn(limits: MediaLimits) -> tuple[Child, socket.socket, Confinement]:
    """Starts a child, which ends when its socket does. Blocks for some 0.1 s. Raises OSError if it does not start."""
    ours, theirs = pair()
    try:
        with theirs:
            words = [sys.executable, "-P", *COMMAND]
            process = spawn(words, env.bare_environment(), theirs.fileno())
    except BaseException:
        ours.close()
        raise
    try:
        ours.send(_ENCODER.encode(Setup(limits, folders_for(MEDIA_PACKAGES), MEDIA_PACKAGES)))
        ours.settimeout(START_TIMEOUT_S)
        ready = _READY.decode(ours.recv(_READY_BYTES))
        ours.setblocking(False)
        if limits.media_require_sandbox and ready.confinement.level == WEAK:
            raise OSError(errno.EPERM, f"it is confined by {ready.confinement} only (--media-require-sandbox)")
    except BaseException as error:
        ours.close()
        process.kill()
        process.wait()
        if isinstance(error, msgspec.MsgspecError):
            raise OSError(errno.EPIPE, "it ended at its start; the log may have the cause") from None
        raise
    return process, ours, ready.confinement


def _drop(starting: Future[tuple[Child, socket.socket, Confinement]]) -> None:
    """Ends a process that nobody waits for, in the thread that started it."""
    if starting.cancelled() or starting.exception() is not None:
        return
    process, end, _ = starting.result()
    end.close()
    process.kill()
    process.wait()
