"""Runs the process that tries grammars: ``python -m triptych.engines.vllm.grammar.template``.

It loads the libraries and the vocabulary, which takes seconds, and forks a process for each trial, which takes
milliseconds. A trial that takes too long is killed, so that nothing of it is left. The process itself never compiles a
grammar, and so has no threads that a fork would lose.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from triptych.engines.vllm.grammar.trial import try_grammar
from triptych.engines.vllm.grammar.wire import GRAMMAR_NICE, LENGTH, Cancel, Order, Setup, Trial, Verdict, frame

_IN, _OUT = 0, 1
_MAX_ANSWER_BYTES = 1 << 16
_FAIR_SHARE = 0.25
"""Minimum share of its time that a trial must have had a processor. Below it, the machine was too busy for a verdict on
the grammar. Beside engines that take all cores a trial gets a quarter (``GRAMMAR_NICE``)."""
_PR_SET_PDEATHSIG = 1
_TOO_LONG = (
    "it takes more than {limit:g} s to compile; use fewer alternatives, optional properties, enum values and "
    "repetitions"
)
_FELL = "the grammar library ends on it (signal {number}); use less nesting, and fewer alternatives and repetitions"


@dataclass
class _Running:
    """Describes a running trial."""

    number: int
    pid: int
    ends_at: float
    answer: bytearray


class Template:
    """Reads orders, forks trials, and writes their verdicts in the order in which they end."""

    def __init__(self, setup: Setup, tokenizer: Any) -> None:
        self._setup = setup
        self._tokenizer = tokenizer
        self._running: dict[int, _Running] = {}
        """Running trials, by the descriptor that the verdict comes from."""

    def run(self) -> None:
        """Serves until the worker closes its end."""
        while True:
            now = time.monotonic()
            wait = min((trial.ends_at - now for trial in self._running.values()), default=None)
            ready, _, _ = select.select([_IN, *self._running], [], [], None if wait is None else max(0.0, wait))
            for fd in ready:
                if fd == _IN:
                    if (body := _read_frame()) is None:
                        return
                    self._order(msgspec.msgpack.decode(body, type=Order))
                elif fd in self._running:
                    self._hear(fd)
            now = time.monotonic()
            for fd in [fd for fd, trial in self._running.items() if trial.ends_at <= now]:
                self._end(fd, kill=True, timed_out=True)

    def close(self) -> None:
        for fd in list(self._running):
            self._end(fd, kill=True, tell=False)

    def _order(self, order: Order) -> None:
        if isinstance(order, Cancel):
            for fd in [fd for fd, trial in self._running.items() if trial.number == order.number]:
                self._end(fd, kill=True, tell=False)
            return
        ours, theirs = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:  # no memory or no process to be had
            os.close(ours)
            os.close(theirs)
            _write(frame(Verdict(number=order.number, outcome="killed", reason=str(error))))
            return
        if pid == 0:
            self._try(order, theirs)
        os.close(theirs)
        self._running[ours] = _Running(order.number, pid, time.monotonic() + self._setup.timeout_s, bytearray())

    def _try(self, order: Trial, verdict_fd: int) -> NoReturn:
        """Runs one trial, in the new process."""
        status = 1
        try:
            _die_with_parent()
            for fd in (_IN, _OUT, *self._running):
                os.close(fd)
            _bound_memory(self._setup.memory_bytes)
            verdict = try_grammar(order.schema, self._setup, self._tokenizer)
            with open(verdict_fd, "wb") as pipe:
                pipe.write(msgspec.msgpack.encode(verdict))
            status = 0
        finally:
            os._exit(status)

    def _hear(self, fd: int) -> None:
        part = os.read(fd, 1 << 16)
        answer = self._running[fd].answer
        answer += part
        if not part or len(answer) > _MAX_ANSWER_BYTES:
            self._end(fd, kill=bool(part))

    def _end(self, fd: int, *, kill: bool = False, timed_out: bool = False, tell: bool = True) -> None:
        trial = self._running.pop(fd)
        os.close(fd)
        if kill:
            os.kill(trial.pid, signal.SIGKILL)
        _, status, used = os.wait4(trial.pid, 0)
        if tell:
            used_s = used.ru_utime + used.ru_stime
            _write(frame(self._verdict(trial, os.waitstatus_to_exitcode(status), used_s if timed_out else None)))

    def _verdict(self, trial: _Running, status: int, used_s: float | None) -> Verdict:
        """Returns the verdict by a trial's exit.

        ``used_s`` is the processor time of a trial that was ended for taking too long.
        """
        if used_s is not None and used_s < _FAIR_SHARE * self._setup.timeout_s:
            reason = f"it had {used_s:.1f} s of the processor in {self._setup.timeout_s:g} s"
            return Verdict(number=trial.number, outcome="killed", reason=reason, timed_out=True)
        if used_s is not None:
            reason = _TOO_LONG.format(limit=self._setup.timeout_s)
            return Verdict(number=trial.number, outcome="too_costly", reason=reason, timed_out=True)
        if status == 0:
            with suppress(msgspec.MsgspecError):  # else what it wrote is not believed
                return msgspec.structs.replace(msgspec.msgpack.decode(trial.answer, type=Verdict), number=trial.number)
        if -status in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
            return Verdict(number=trial.number, outcome="too_costly", reason=_FELL.format(number=-status))
        return Verdict(number=trial.number, outcome="killed", reason=f"its process ended with status {status}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _bound_memory(more_bytes: int) -> None:
    """Limits writable memory. Address space is not limited: threads reserve gigabytes of it and never use them."""
    with open("/proc/self/statm", "rb") as file:
        size = int(file.read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (size + more_bytes, size + more_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_frame() -> bytes | None:
    """Returns the next frame; None at the end. Blocks: the worker writes frames as a whole."""
    head = _read(LENGTH.size)
    return _read(LENGTH.unpack(head)[0]) if head is not None else None


def _read(size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(_IN, size - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(_OUT, data) :]


def main() -> int:
    _die_with_parent()
    os.nice(GRAMMAR_NICE)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # sent to a whole group; it ends when the worker closes its end
        signal.signal(number, signal.SIG_IGN)
    import xgrammar

    body = _read_frame()
    if body is None:
        return 0
    setup = msgspec.msgpack.decode(body, type=Setup)
    template = Template(setup, xgrammar.TokenizerInfo.deserialize_json(setup.tokenizer))
    _write(LENGTH.pack(0))
    try:
        template.run()
    finally:
        template.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
