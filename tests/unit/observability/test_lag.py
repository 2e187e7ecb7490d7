import asyncio
import time

from support.loops import until
from triptych.observability.lag import LoopLag


def values(lag):
    return {one.name.removeprefix("triptych_event_loop_"): one.value for one in lag.metrics()}


async def test_a_blocked_loop_is_measured_once_and_reported_once():
    seen = []
    with LoopLag(0.01, seen.append).watching() as lag:
        await until(lambda: lag.ticks >= 2, "it ticks")
        time.sleep(0.15)  # noqa: ASYNC251 - holds the event loop
        await until(lambda: lag.worst_s > 0.1, "it is late")
        assert max(seen) == lag.worst_s
        told = values(lag)
        assert 0.1 < told["lag_max_seconds"] <= told["lag_seconds_total"]
        assert told["blocked_total"] >= 1
        assert told["ticks_total"] == len(seen)
        assert values(lag)["lag_max_seconds"] == 0, "the worst since the last time"
    ticks = lag.ticks
    await asyncio.sleep(0.05)
    assert lag.ticks == ticks, "it ends with the block"
