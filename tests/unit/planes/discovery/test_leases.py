"""When a watcher takes a worker for dead, by its own clock."""

from __future__ import annotations

from support.instances import instance
from triptych.planes.discovery.leases import Leases

A, B = instance("a"), instance("b")


def ids(leases: Leases) -> list[str]:
    return [one.id for one in leases.snapshot()]


def test_a_silent_instance_expires() -> None:
    leases = Leases(lease_s=2.0, grace_s=5.0)
    leases.renewed("b", B, 100.0)
    leases.renewed("a", A, 101.0)
    assert ids(leases) == ["a", "b"], "sorted by id"
    assert leases.next_due() == 102.0
    leases.expire(101.9)
    assert ids(leases) == ["a", "b"]
    leases.expire(102.0)
    assert ids(leases) == ["a"]
    leases.renewed("a", A, 102.5)
    leases.expire(104.4)
    assert ids(leases) == ["a"], "it was heard of again"
    leases.expire(104.5)
    assert (ids(leases), leases.next_due()) == ([], None)


def test_what_lay_in_the_store_has_the_rest_of_its_time() -> None:
    leases = Leases(lease_s=2.0, grace_s=5.0)
    leases.found("a", A, 100.0, age_s=1.5)
    leases.expire(100.4)
    assert ids(leases) == ["a"]
    leases.expire(100.5)
    assert ids(leases) == []


def test_a_store_that_comes_back_gives_everybody_time() -> None:
    leases = Leases(lease_s=2.0, grace_s=5.0)
    leases.renewed("a", A, 100.0)
    leases.renewed("b", B, 100.0)
    leases.forgive(160.0)
    leases.found("a", A, 160.0, age_s=1.9)
    leases.expire(164.9)
    assert ids(leases) == ["a", "b"], "also who is in the store with little time left"
    leases.renewed("a", A, 164.0)
    leases.expire(165.0)
    assert ids(leases) == ["a"]
    leases.expire(166.0)
    assert ids(leases) == [], "who has come back is held to its lease again"


def test_the_version_tells_of_changes_only() -> None:
    leases = Leases(lease_s=2.0, grace_s=5.0)
    leases.renewed("a", A, 100.0)
    first = leases.version
    leases.renewed("a", instance("a"), 101.0)
    leases.forgive(102.0)
    leases.ended("b")
    assert leases.version == first
    leases.renewed("a", instance("a", port=2), 103.0)
    second = leases.version
    assert second != first
    leases.ended("a")
    assert leases.version != second
