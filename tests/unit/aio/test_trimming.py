"""Memory is given back to the system once large requests are over."""

from __future__ import annotations

import asyncio
import threading

import pytest

from triptych.aio import trimming


async def test_requests_that_end_together_are_followed_by_one_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    monkeypatch.setattr(trimming, "TRIM_AFTER_S", 0.01)
    loop, trimmed = asyncio.get_running_loop(), asyncio.Event()

    def trim() -> None:
        threads.append(threading.current_thread().name)
        loop.call_soon_threadsafe(trimmed.set)

    monkeypatch.setattr(trimming, "trim", trim)
    trimmer = trimming.Trimmer()
    for _ in range(2):
        trimmed.clear()
        for _ in range(5):
            trimmer.soon()
        await trimmed.wait()
    assert len(threads) == 2
    assert threading.main_thread().name not in threads


async def test_under_a_steady_load_memory_is_given_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimming, "TRIM_AFTER_S", 0.05)
    monkeypatch.setattr(trimming, "MAX_DELAY_S", 0.2)
    trims: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(trimming, "trim", lambda: trims.append(loop.time()))
    trimmer, begun = trimming.Trimmer(), loop.time()
    while not trims:
        trimmer.soon()
        await asyncio.sleep(0.005)
    assert trims[0] - begun >= 0.2, "what ends in between is waited for"
