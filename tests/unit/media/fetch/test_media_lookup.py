import asyncio
import socket
import threading

import pytest

from triptych.media.fetch import lookup
from triptych.media.fetch.lookup import ThreadLookup


class System:
    """In the place of getaddrinfo: ``slow`` hangs until ``go``, ``gone`` has no address."""

    def __init__(self):
        self.go = threading.Event()
        self.calls = []

    def __call__(self, host, port, family, kind, flags=0):
        self.calls.append(host)
        if host == "slow":
            self.go.wait(10)
        if host == "gone":
            raise socket.gaierror(-2, "no such name")
        return [(socket.AF_INET6, kind, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, kind, 6, "", ("1.2.3.4", 0))]


@pytest.fixture
def system(monkeypatch):
    one = System()
    monkeypatch.setattr(lookup.socket, "getaddrinfo", one)
    yield one
    one.go.set()


async def addresses(names, host):
    return [(one["host"], one["port"], one["family"]) for one in await names.resolve(host, 80, socket.AF_UNSPEC)]


async def test_all_addresses_of_a_name(system):
    names = ThreadLookup(1)
    expected = [("::1", 80, socket.AF_INET6), ("1.2.3.4", 80, socket.AF_INET)]
    assert await addresses(names, "a") == expected
    with pytest.raises(OSError, match="no such name"):
        await addresses(names, "gone")
    assert await addresses(names, "a") == expected
    assert system.calls == ["a", "gone", "a"], "nothing is kept"
    await names.close()


async def test_a_name_that_hangs_takes_one_thread_and_who_gives_up_touches_no_other(system):
    names = ThreadLookup(2)
    waiting = [asyncio.create_task(addresses(names, "slow")) for _ in range(5)]
    assert len(await addresses(names, "a")) == 2, "the second thread is free"
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    assert len(await addresses(names, "a")) == 2
    system.go.set()
    assert len(await asyncio.gather(*waiting[1:])) == 4
    assert system.calls.count("slow") == 1
    await names.close()


async def test_a_failure_that_nobody_waits_for_is_no_noise(system):
    noise = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context))
    names = ThreadLookup(1)
    blocker = asyncio.create_task(addresses(names, "slow"))
    task = asyncio.create_task(addresses(names, "gone"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    system.go.set()
    await blocker
    assert len(await addresses(names, "a")) == 2
    await names.close()
    assert noise == []
