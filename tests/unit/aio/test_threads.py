"""A lane of threads is bounded, and a cancelled caller leaves nothing behind."""

import asyncio
import threading
from contextlib import closing

import pytest

from triptych.aio.threads import Lane, in_new_thread
from triptych.contracts.errors import TooManyRequests, Unavailable
from triptych.processor.text_work import INLINE_CHARACTERS, LARGE_CHARACTERS, TextWork


async def test_results_and_errors_come_back():
    with closing(Lane("test", 1, 4, 10)) as lane:
        assert await lane.run(lambda: 7) == 7
        with pytest.raises(KeyError):
            await lane.run(lambda: {}["x"])
        assert lane.waiting == 0


async def test_the_number_of_waiting_calls_is_bounded():
    go = threading.Event()
    with closing(Lane("test", 1, 2, 10)) as lane:
        calls = [asyncio.create_task(lane.run(go.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests) as error:
            await lane.run(go.wait)
        assert error.value.code == "text_queue_full"
        calls[2].cancel()  # one that waits leaves, and its place is free
        await asyncio.wait({calls[2]})
        await asyncio.sleep(0)
        calls.append(asyncio.create_task(lane.run(go.wait)))
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(calls[0], calls[1], calls[3]) == [True] * 3
        await asyncio.sleep(0)
        assert (lane.calls, lane.refused) == (0, 1)


async def test_a_call_that_takes_too_long_is_refused_and_keeps_its_thread():
    go = threading.Event()
    with closing(Lane("test", 1, 2, 0.05)) as lane:
        try:
            for _ in range(2):
                with pytest.raises(Unavailable) as error:
                    await lane.run(go.wait)
                assert error.value.code == "text_timeout"
        finally:
            go.set()
        assert await lane.run(lambda: 1) == 1


async def test_texts_go_to_a_lane_by_their_size():
    with closing(TextWork(1, 10)) as work:
        name = threading.current_thread().name
        sizes = (INLINE_CHARACTERS, INLINE_CHARACTERS + 1, LARGE_CHARACTERS + 1)
        here, texts, large = [await work.prepare(lambda: threading.current_thread().name, n) for n in sizes]
        many = await work.prepare(lambda: threading.current_thread().name, 1, 10_000)
        assert here == name
        assert texts.startswith("triptych-text")
        assert many.startswith("triptych-text")
        assert large.startswith("triptych-large_text")


def test_a_new_thread_ends_with_its_call():
    before = set(threading.enumerate())
    other = in_new_thread(threading.current_thread)
    assert other not in before
    assert not other.is_alive()
    with pytest.raises(KeyError):
        in_new_thread(lambda: {}["x"])
