"""One decoder as its parent sees it: a child process that works on one job at a time."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

import msgspec

import triptych
from triptych.config import env
from triptych.config.media import MediaLimits
from triptych.media.sandbox.wire import MESSAGE_BYTES, READY, START_TIMEOUT_S, Done, Job, Setup, pair

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


class Answer(NamedTuple):
    done: Done
    fd: int | None
    """Shared memory of the answer, the receiver's to close."""


class Decoder:
    """A child process and its socket. For one event loop, which it never blocks. ``kill`` ends it for good."""

    def __init__(self, process: subprocess.Popen[bytes], end: socket.socket, reaper: Executor) -> None:
        self._process = process
        self._socket = end
        self._reaper = reaper
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Answer] | None = None
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

    async def run(self, job: Job, fds: list[int], limit_s: float) -> Answer:
        """One job at a time; ``fds`` may be closed afterwards. Raises Died, and then it is.

        Must not be cancelled, but hurried: the answer would be that of another job.
        """
        self._answer = self._loop.create_future()
        self._timer = self._loop.call_later(limit_s, self._time_out)
        try:
            socket.send_fds(self._socket, [_ENCODER.encode(job)], fds)
            return await self._answer
        except OSError:  # it died just now, or its end of the socket does not fit the message
            self.kill()
        except EOFError:
            pass
        finally:
            self._timer.cancel()
            self._answer = None
        raise await self._cause()

    def hurry(self) -> None:
        """Nobody waits for the job any more."""
        if self._timer is not None and self._answer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_later(ABANDONED_S, self._time_out)

    def kill(self) -> None:
        """At once, and without a wait: ``wait`` tells when it is gone. May be called twice."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._process.kill()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(EOFError())

    async def wait(self) -> int:
        """The exit status of a process that was killed or has ended."""
        return await asyncio.shield(self._loop.run_in_executor(self._reaper, self._process.wait))

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
        if not message or self._answer is None or self._answer.done():
            for fd in fds:
                os.close(fd)
            self._ended()
            return
        try:
            self._answer.set_result(Answer(_DONE.decode(message), fds[0] if fds else None))
        except msgspec.MsgspecError:
            self.kill()

    def _ended(self) -> None:
        """End of the socket: let it end by itself, so that its status tells how."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(EOFError())

    async def _cause(self) -> Died:
        status = await self.wait()
        if self._timed_out:
            return Died("it took too long", timed_out=True)
        if status == -signal.SIGKILL:
            return Died("its process was killed, as the system does where memory runs out")
        if status < 0:
            return Died(f"its process ended by signal {-status} ({signal.Signals(-status).name})")
        return Died(f"its process ended with status {status}")


def _spawn(limits: MediaLimits) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Blocks for some 0.1 s. The child ends when the socket does. Raises OSError where it does not come up."""
    ours, theirs = pair()
    source = str(Path(triptych.__file__).parents[1])
    environment = {**env.bare_environment(), **_ONE_THREAD, "PYTHONPATH": source}
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "triptych.media.sandbox.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
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


def _drop(starting: Future[tuple[subprocess.Popen[bytes], socket.socket]]) -> None:
    """End what was started for nobody; in the thread that started it."""
    if starting.cancelled() or starting.exception() is not None:
        return
    process, end = starting.result()
    end.close()
    process.kill()
    process.wait()
