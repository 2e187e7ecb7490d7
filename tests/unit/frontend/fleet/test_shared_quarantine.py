"""What frontends tell each other of requests in quarantine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from support.loops import until
from triptych.frontend.fleet import quarantine
from triptych.frontend.fleet.quarantine import SharedQuarantine, bucket, seal_with
from triptych.planes.state.memory import MemoryState, MemoryStore
from triptych.stages.isolation import Isolation
from triptych.stages.suspects import Suspects

P, Q = b"P" * 32, b"Q" * 32
SEAL = seal_with("token")


class Frontend:
    """As much of one as is in quarantine's way."""

    def __init__(self, store: MemoryStore, keep_s: float, max_quarantined: int) -> None:
        self.suspects = Suspects(keep_s, max_quarantined, seal=SEAL)
        self.isolation = Isolation(self.suspects)
        state = MemoryState(store, bucket(max_quarantined))
        self.shared = SharedQuarantine(self.isolation, state, max_quarantined)

    def put_away(self, name: bytes) -> None:
        for worker in ("a", "b"):
            self.isolation.fell(f"{worker} {name.hex()}", {name})
            self.suspects._fallen.clear()  # another fall shortly before would excuse it

    def refuses(self, *names: bytes) -> bool:
        return set(self.isolation.quarantined_for()) == {SEAL(name) for name in names}

    @property
    def metrics(self) -> dict[str, float]:
        return {metric.name.removeprefix("triptych_"): metric.value for metric in self.shared.metrics()}


@contextlib.asynccontextmanager
async def frontends(
    count: int, store: MemoryStore, keep_s: float = 600.0, max_quarantined: int = 10
) -> AsyncIterator[list[Frontend]]:
    async with contextlib.AsyncExitStack() as stack:
        made = [Frontend(store, keep_s, max_quarantined) for _ in range(count)]
        for one in made:
            await stack.enter_async_context(one.shared.sharing())
        yield made


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "RETRY_S", 0.01)


async def test_all_refuse_what_one_has_found() -> None:
    store = MemoryStore()
    async with frontends(3, store) as fleet:
        fleet[0].put_away(P)
        await until(lambda: all(one.refuses(P) for one in fleet), "all refuse it")
        assert 590 < fleet[2].isolation.quarantined_for()[SEAL(P)] <= 600
        async with frontends(1, store) as (late,):
            assert late.refuses(P), "at once"
        fleet[1].put_away(Q)
        await until(lambda: all(one.refuses(P, Q) for one in fleet), "all refuse both")


async def test_all_forget_it_when_its_time_is_over() -> None:
    async with frontends(2, MemoryStore(), keep_s=0.3) as fleet:
        fleet[0].put_away(P)
        await until(lambda: fleet[1].refuses(P), "it is refused")
        await until(lambda: all(one.refuses() for one in fleet), "it is not any more")


async def test_an_entry_that_is_removed_is_refused_no_more() -> None:
    store = MemoryStore()
    async with frontends(2, store) as fleet:
        fleet[0].put_away(P)
        await until(lambda: fleet[1].refuses(P), "it is refused")
        await MemoryState(store, bucket(10)).delete(SEAL(P).hex())
        await until(lambda: all(one.refuses() for one in fleet), "an operator took it away")


async def test_while_the_state_is_away_each_goes_by_what_it_knows() -> None:
    store = MemoryStore()
    async with frontends(2, store) as fleet:
        fleet[0].put_away(P)
        await until(lambda: fleet[1].refuses(P), "it is refused")
        store.is_away = True
        assert fleet[0].metrics["shared_state_available"] == 0
        fleet[1].put_away(Q)
        assert fleet[1].refuses(P, Q)
        assert fleet[0].refuses(P)
        store.is_away = False
        await until(lambda: all(one.refuses(P, Q) for one in fleet), "the rest is told later")
        assert fleet[0].metrics["shared_state_available"] == 1


async def test_what_the_state_has_lost_is_told_again() -> None:
    store = MemoryStore()
    async with frontends(2, store) as fleet:
        fleet[0].put_away(P)
        await until(lambda: fleet[1].refuses(P), "it is refused")
        store.is_away = True
        await asyncio.sleep(0.01)  # for watches to see that it is away
        store.entries.clear()
        store.is_away = False
        await until(lambda: store.entries, "it is there again")
        assert all(one.refuses(P) for one in fleet)


async def test_a_state_without_room_is_said_and_costs_only_what_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with frontends(2, MemoryStore(), max_quarantined=2) as fleet:
        names = [bytes([n]) * 32 for n in range(4)]
        for name in names:
            fleet[0].put_away(name)
            await until(lambda: not fleet[0].shared._waiting, "it is told, or cannot be")
        assert fleet[0].refuses(*names[2:])
        await until(lambda: fleet[1].refuses(*names[:2]), "as many as there is room for are told")
        assert fleet[0].metrics["quarantine_untold_total"] == 2
    assert "are not told" in caplog.text


async def test_what_is_no_request_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    state = MemoryState(store, bucket(10))
    for key in ("not hexadecimal", "ab" * 31):
        await state.put(key, b"", ttl_s=600.0)
    await state.put(SEAL(Q).hex(), b"")
    with caplog.at_level(logging.WARNING):
        async with frontends(1, store) as (one,):
            one.put_away(P)
            await state.delete("not hexadecimal")
            await until(lambda: len(store.entries) == 3, "it is told")
            assert one.refuses(P)
    assert sum("it names no request" in record.getMessage() for record in caplog.records) == 3


async def test_neither_content_nor_name_can_be_made_out_without_the_token() -> None:
    store = MemoryStore()
    async with frontends(1, store) as (one,):
        one.put_away(P)
        await until(lambda: store.entries, "it is told")
    assert set(store.entries) == {SEAL(P).hex()}
    assert seal_with(None)(P) != SEAL(P) != seal_with("other")(P)
    assert P.hex() not in repr(store.entries)
