"""What a watcher of shared state is told of what was found and heard."""

from __future__ import annotations

from triptych.planes.state.base import Entry, Update
from triptych.planes.state.view import View


def entry(key: str, revision: int = 1, left_s: float | None = None) -> Entry:
    return Entry(key, b"", revision, left_s)


def test_a_change_is_told_once() -> None:
    view = View()
    assert view.replace([entry("a")], 0.0) == Update((entry("a"),), is_complete=True)
    assert view.update([entry("a"), entry("b")], ["c"], 0.0) == Update((entry("b"),))
    assert view.update([entry("a"), entry("b")], ["c"], 0.0) is None
    assert view.update([entry("a", 2)], ["b"], 0.0) == Update((entry("a", 2),), ("b",))
    assert view.keys() == {"a"}
    assert view.replace([], 0.0) == Update(is_complete=True)


def test_entries_expire_by_their_last_write() -> None:
    view = View()
    view.replace([entry("a", left_s=10.0), entry("b", left_s=20.0), entry("c")], 100.0)
    assert (view.wait_s(100.0, 60.0), view.wait_s(100.0, 5.0)) == (10.0, 5.0)
    view.update([entry("a", 2, left_s=30.0)], [], 105.0)
    assert view.expire(109.9) is None
    assert view.expire(110.0) is None, "it was written again"
    assert view.expire(120.0) == Update((), ("b",))
    assert view.wait_s(120.0, 60.0) == 15.0
    view.update([entry("a", 3)], [], 121.0)
    assert view.expire(1e9) is None, "it has no end any more"
    assert view.wait_s(1e9, 60.0) == 60.0


def test_what_has_expired_when_it_is_found_was_never_there() -> None:
    view = View()
    assert view.replace([entry("a", left_s=0.0), entry("b", left_s=1.0)], 0.0).changed == (entry("b", left_s=1.0),)
    assert view.update([entry("a", left_s=-1.0)], [], 0.0) is None
    assert view.update([entry("b", 2, left_s=-1.0)], [], 0.0) == Update((), ("b",)), "the write before it is no more"
