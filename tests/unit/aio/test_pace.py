import asyncio

from support.loops import SOON_S, run
from triptych.aio.pace import PIECE_BYTES, SMALL_BYTES, TURN_BYTES, Pace, pace


async def test_each_turn_moves_a_bounded_amount_and_callers_go_in_order():
    mine = Pace()
    turn, moved, order = 0, [], []

    def count() -> None:
        nonlocal turn
        turn += 1
        asyncio.get_running_loop().call_soon(count)

    async def mover(name: int) -> None:
        for _ in range(4):
            await mine.wait_for_budget()
            moved.append(turn)
            order.append(name)
            mine.spend(PIECE_BYTES)

    count()
    await asyncio.gather(*(mover(name) for name in range(16)))
    max_pieces = TURN_BYTES // PIECE_BYTES
    assert max(moved.count(one) for one in set(moved)) <= 2 * max_pieces
    assert len(moved) / len(set(moved)) <= max_pieces + 1, "pieces a turn, on average"
    # The first finds a turn for itself; then all take turns.
    assert set(order[: 16 + max_pieces]) == set(range(16)), "nobody is passed over"


async def test_small_moves_are_not_counted():
    mine = Pace()
    assert all(mine.spend(SMALL_BYTES) for _ in range(1000))
    assert not mine.spend(2 * TURN_BYTES)
    waiting = asyncio.create_task(mine.wait_for_budget())
    async with asyncio.timeout(SOON_S):
        await waiting
    assert mine.has_budget


async def test_a_cancelled_waiter_holds_up_nobody():
    mine = Pace()
    mine.spend(2 * TURN_BYTES)
    first, second = (asyncio.create_task(mine.wait_for_budget()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(SOON_S):
        await second


def test_each_event_loop_has_one_pace():
    async def main():
        assert pace() is pace()
        return pace()

    assert run(main()) is not run(main())
