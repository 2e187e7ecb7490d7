"""One decoder as its parent sees it: a child process that works on one job, and may have the next one waiting."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

import triptych
from triptych.config import env
from triptych.config.media import MediaLimits
from triptych.media.sandbox.spare import Spares
from triptych.media.sandbox.spawn import Child, spawn
from triptych.media.sandbox.wire import MESSAGE_BYTES, READY, START_TIMEOUT_S, Done, Job, Setup, pair
from triptych.memory import Mapping

_ENCODER = msgspec.msgpack.Encoder()
_DONE = msgspec.msgpack.Decoder(Done)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
ABANDONED_S = 1.0
"""For a job that nobody waits for any more: to let it end is cheaper than another process, for so long."""


class Died(Exception):
    """The decoder is gone. ``cause`` says how, as it may be told."""

    def __init__(self, cause: str, *, timed_out: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.timed_out = timed_out


class NotBegun(Exception):
    """The decoder is gone, and had not begun with the job: another may take it."""


class Answer(NamedTuple):
    done: Done
    memory: Mapping | None
    """In which what was decoded lies, where it is large."""


class _Received(NamedTuple):
    done: Done
    fd: int | None


@dataclass(eq=False)
class _Pending:
    """A job that waits for its answer."""

    message: bytes
    fds: list[int]
    limit_s: float
    begin: Callable[[], None]
    answer: asyncio.Future[_Received]
    sent: bool = False


class Decoder:
    """A child process and its socket. For one event loop, which it never blocks. ``kill`` ends it for good.

    It answers jobs in their order, each within its time limit from when it began.
    """

    def __init__(self, process: Child, end: socket.socket, reaper: Executor) -> None:
        self._process = process
        self._socket = end
        self._reaper = reaper
        self._loop = asyncio.get_running_loop()
        self._spares = Spares()
        self._jobs: deque[_Pending] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timed_out = False
        self._closed = False
        self._loop.add_reader(end, self._readable)

    @classmethod
    async def start(cls, limits: MediaLimits, executor: Executor) -> Decoder:
        """``executor`` runs what would block. Raises OSError where no process can be had."""
        starting = executor.submit(_spawn, limits)
        try:
            process, end = await asyncio.wrap_future(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_drop)
            raise
        return cls(process, end, executor)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._closed and self._process.poll() is None

    @property
    def jobs(self) -> int:
        """That it has: the one that it works on, and those that wait."""
        return len(self._jobs)

    async def run(
        self, job: Job, fds: list[int], expected_bytes: int, limit_s: float, begin: Callable[[], None]
    ) -> Answer:
        """``begin`` is called when its turn comes; ``fds`` may be closed afterwards. ``expected_bytes`` are decoded.

        Raises Died, or NotBegun where its turn had not come; the decoder is then gone. OSError for memory that is not
        what the answer says. Cancelling drops the answer only: one that has begun is to be hurried, too.
        """
        if self._closed:
            raise NotBegun
        loan = self._spares.take(expected_bytes)
        if loan is not None:
            job, fds = replace(job, into_bytes=loan.mapping.size_bytes), [*fds, loan.fd]
        pending = _Pending(_ENCODER.encode(job), fds, limit_s, begin, self._loop.create_future())
        self._jobs.append(pending)
        if len(self._jobs) == 1:
            self._begin()
        else:
            self._send(pending)
        try:
            done, fd = await pending.answer
        except EOFError:
            raise await self._cause() from None
        if fd is not None:
            return Answer(done, self._spares.adopt(fd, done.shared_bytes))
        return Answer(done, loan.mapping if loan is not None and done.lent else None)

    def hurry(self) -> None:
        """Nobody waits for the job that it works on any more."""
        if self._timer is not None and self._jobs:
            self._set_timer(ABANDONED_S)

    def kill(self) -> None:
        """At once, and without a wait: ``wait`` tells when it is gone. May be called twice."""
        if not self._closed:
            self._process.kill()
        self._ended()

    async def wait(self) -> int:
        """The exit status of a process that was killed or has ended."""
        return await asyncio.shield(self._loop.run_in_executor(self._reaper, self._process.wait))

    def _begin(self) -> None:
        """The turn of the first job has come: its time limit counts from now."""
        while self._jobs[0].answer.done() and not self._jobs[0].sent:
            self._jobs.popleft()
            if not self._jobs:
                return
        first = self._jobs[0]
        if first.answer.done():  # it was cancelled, but the decoder has it
            self._set_timer(ABANDONED_S)
            return
        self._set_timer(first.limit_s)
        first.begin()
        if not first.sent:
            self._send(first)

    def _send(self, pending: _Pending) -> None:
        try:
            socket.send_fds(self._socket, [pending.message], pending.fds)
            pending.sent = True
        except BlockingIOError:
            if pending is self._jobs[0]:  # its end of the socket does not fit the message
                self.kill()
        except OSError:  # it died just now
            self.kill()

    def _set_timer(self, limit_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(limit_s, self._time_out)

    def _time_out(self) -> None:
        self._timed_out = True
        self.kill()

    def _readable(self) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message, fds = b"", []
        try:
            answer = _Received(_DONE.decode(message), fds[0] if fds else None) if message and self._jobs else None
        except msgspec.MsgspecError:
            answer = None
        if answer is None:
            _close(fds)
            if message:
                self.kill()
            else:
                self._ended()
            return
        self._answered(self._jobs.popleft(), answer)

    def _answered(self, pending: _Pending, answer: _Received) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if pending.answer.done():  # nobody waits for it any more
            _close([] if answer.fd is None else [answer.fd])
        else:
            pending.answer.set_result(answer)
        if self._jobs:
            self._begin()

    def _ended(self) -> None:
        """End of the socket: let it end by itself, so that its status tells how."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._spares.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        error: Exception = EOFError()
        while self._jobs:
            answer = self._jobs.popleft().answer
            if not answer.done():
                answer.set_exception(error)
            error = NotBegun()

    async def _cause(self) -> Died:
        status = await self.wait()
        if self._timed_out:
            return Died("it took too long", timed_out=True)
        if status == -signal.SIGKILL:
            return Died("its process was killed, as the system does where memory runs out")
        if status < 0:
            return Died(f"its process ended by signal {-status} ({signal.Signals(-status).name})")
        return Died(f"its process ended with status {status}")


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _spawn(limits: MediaLimits) -> tuple[Child, socket.socket]:
    """Blocks for some 0.1 s. The child ends when the socket does. Raises OSError where it does not come up."""
    ours, theirs = pair()
    source = str(Path(triptych.__file__).parents[1])
    environment = {**env.bare_environment(), **_ONE_THREAD, "PYTHONPATH": source}
    try:
        with theirs:
            words = [sys.executable, "-P", "-m", "triptych.media.sandbox.child"]
            process = spawn(words, environment, theirs.fileno())
    except BaseException:
        ours.close()
        raise
    try:
        ours.send(_ENCODER.encode(Setup(limits)))
        ours.settimeout(START_TIMEOUT_S)
        if ours.recv(len(READY)) != READY:
            raise OSError(errno.EPIPE, "it ended at its start; the log may have the cause")
        ours.setblocking(False)
    except BaseException:
        ours.close()
        process.kill()
        process.wait()
        raise
    return process, ours


def _drop(starting: Future[tuple[Child, socket.socket]]) -> None:
    """End what was started for nobody; in the thread that started it."""
    if starting.cancelled() or starting.exception() is not None:
        return
    process, end = starting.result()
    end.close()
    process.kill()
    process.wait()
