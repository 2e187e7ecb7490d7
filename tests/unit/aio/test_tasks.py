import asyncio
import logging

from triptych.aio.tasks import TaskSet


async def test_close_cancels_and_awaits_all():
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    tasks = TaskSet()
    for number in range(3):
        tasks.spawn(work(), f"work {number}")
    await asyncio.sleep(0)
    assert len(tasks) == 3
    await tasks.close()
    assert len(ended) == 3
    assert len(tasks) == 0
    await tasks.close()


async def test_a_failed_task_is_logged_once_and_forgotten(caplog):

    with caplog.at_level(logging.ERROR):

        async def fail():
            raise RuntimeError("boom")

        tasks = TaskSet()
        tasks.spawn(fail(), "the failing one")
        assert await tasks.wait_idle(5)
        await asyncio.sleep(0)
        assert len(tasks) == 0
    assert caplog.text.count("the failing one") == 1
    assert "boom" in caplog.text


async def test_wait_idle_ends_at_its_time_limit():
    tasks = TaskSet()
    tasks.spawn(asyncio.Event().wait(), "for ever")
    assert not await tasks.wait_idle(0.05)
    await tasks.close()
    assert await tasks.wait_idle(0.05)


async def test_a_task_may_close_its_own_set():
    tasks = TaskSet()
    task = tasks.spawn(tasks.close(), "closes")
    await asyncio.wait([task])
    assert not task.cancelled()
