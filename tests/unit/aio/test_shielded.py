"""A terminal's signals to a group of processes do not reach shielded ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import pytest

from triptych.aio.shielded import shielded


def serve(pipe: Connection) -> None:
    """Handles signals as vLLM's engine process does, and answers."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(number))
    multiprocessing.Semaphore()  # needs the resource tracker
    pipe.send("ready")
    while True:
        pipe.send(pipe.recv())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_shielded_process_ignores_terminal_signals_and_ends_by_sigterm(number: signal.Signals) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with shielded():
        process = context.Process(target=serve, args=(theirs,))
        process.start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    try:
        assert ours.recv() == "ready"
        assert process.pid is not None
        os.kill(process.pid, number)
        ours.send("still there")
        assert ours.recv() == "still there"
        process.terminate()
        process.join(10)
        assert process.exitcode == signal.SIGTERM
    finally:
        process.kill()
        process.join(10)
        process.close()
        ours.close()
        theirs.close()
