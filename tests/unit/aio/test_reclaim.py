"""Memory is given back to the system once large requests are over."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from triptych.aio import reclaim
from triptych.cli import main


async def test_requests_that_end_together_are_followed_by_one_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    monkeypatch.setattr(reclaim, "TRIM_AFTER_S", 0.01)
    loop, trimmed = asyncio.get_running_loop(), asyncio.Event()

    def trim() -> None:
        threads.append(threading.current_thread().name)
        loop.call_soon_threadsafe(trimmed.set)

    monkeypatch.setattr(reclaim, "trim", trim)
    trimmer = reclaim.Trimmer()
    for _ in range(2):
        trimmed.clear()
        for _ in range(5):
            trimmer.soon()
        await trimmed.wait()
    assert len(threads) == 2
    assert threading.main_thread().name not in threads


async def test_under_a_steady_load_memory_is_given_back_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reclaim, "TRIM_AFTER_S", 0.05)
    monkeypatch.setattr(reclaim, "MAX_DELAY_S", 0.2)
    trims: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(reclaim, "trim", lambda: trims.append(loop.time()))
    trimmer, begun = reclaim.Trimmer(), loop.time()
    while not trims:
        trimmer.soon()
        await asyncio.sleep(0.005)
    assert trims[0] - begun >= 0.2, "what ends in between is waited for"


def test_frozen_objects_are_collected_at_exit():
    """Otherwise libraries that count their objects would complain at every exit."""
    code = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from triptych.aio.reclaim import freeze_gc\n"
        "freeze_gc(); freeze_gc(); print(gc.get_freeze_count() > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0"]


THREADS_OF_ONE_HEAP = """
import ctypes, sys, threading
from triptych.aio.reclaim import share_heap

share_heap()
done = threading.Barrier(5)
def allocate():
    kept = [bytes(5000) for _ in range(100)]
    done.wait()
for _ in range(4):
    threading.Thread(target=allocate).start()
done.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def test_threads_allocate_from_one_heap(tmp_path):
    report = tmp_path / "heaps.xml"
    subprocess.run([sys.executable, "-c", THREADS_OF_ONE_HEAP, str(report)], check=True, timeout=30)
    assert report.read_text().count("<heap nr=") == 1


def test_a_frontend_has_one_heap_before_it_has_threads(monkeypatch):
    calls = []
    monkeypatch.setattr(reclaim, "share_heap", lambda: calls.append("heap"))

    def guarded():
        calls.append("thread")
        raise SystemExit(0)

    monkeypatch.setattr(main.stopping, "guarded", guarded)
    for command in ("frontend", "worker"):
        with pytest.raises(SystemExit):
            main.main([command])
    assert calls == ["heap", "thread", "thread"]
