"""What a follower makes of numbered messages."""

from __future__ import annotations

import msgspec
import pytest

from triptych.contracts.kv_events import KvBatch, KvChange, Load, NumberedUpdate, Snapshot, WorkerUpdate, packed
from triptych.planes.events.tail import Gap, Tail


def change(*hashes: int) -> KvChange:
    return KvChange(0, True, packed(list(hashes)))


def begun(number: int = 5) -> Tail:
    tail = Tail("me")
    tail.begin(Snapshot("a", number, [], {}))
    return tail


def test_it_begins_with_a_snapshot_and_the_load_of_others() -> None:
    loads = {"me": Load(1, 1, 1), "you": Load(2, 3, 4), "they": Load(10, 10, 10)}
    news = Tail("me").begin(Snapshot("a", 5, [change(1)], loads))
    assert news == WorkerUpdate(KvBatch(5, [change(1)], reset=True), Load(12, 13, 14))


def test_what_the_snapshot_has_is_dropped_and_the_rest_applied() -> None:
    tail = begun(5)
    assert tail.apply(NumberedUpdate("a", 4, [change(1)])) is None
    assert tail.apply(NumberedUpdate("a", 5, [change(2)], {"you": Load(1, 1, 1)})) is None
    assert tail.apply(NumberedUpdate("a", 6, [change(3)])) == WorkerUpdate(KvBatch(6, [change(3)]))
    assert tail.apply(NumberedUpdate("a", 6, [change(3)])) is None, "it came twice"
    assert tail.apply(NumberedUpdate("a", 7, [], {"me": Load(9, 9, 9), "you": Load(1, 2, 3)})) == WorkerUpdate(
        None, Load(1, 2, 3)
    )
    assert tail.apply(NumberedUpdate("a", 8)) is None


@pytest.mark.parametrize(
    "update",
    [
        NumberedUpdate("a", 7, [change(1)]),
        NumberedUpdate("a", 7),
        NumberedUpdate("b", 6, [change(1)]),
        NumberedUpdate("b", 1),
    ],
)
def test_a_gap_and_another_publisher_need_a_snapshot(update: NumberedUpdate) -> None:
    tail = begun(5)
    with pytest.raises(Gap):
        tail.apply(update)
    tail.begin(Snapshot("b", 1, [], {}))
    assert tail.apply(NumberedUpdate("b", 2, [change(2)])) == WorkerUpdate(KvBatch(2, [change(2)]))


@pytest.mark.parametrize("change", [[3, True, b""], [-1, True, b""], [0, True, b"1234567"], [0, 1, b""]])
def test_changes_that_no_index_could_apply_are_no_messages(change: list[object]) -> None:
    with pytest.raises(msgspec.MsgspecError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(["a", 1, [change]]), type=NumberedUpdate)
