"""Keeps the leases that a watcher believes to run. Pure: the caller gives all times, from one clock of its own."""

from __future__ import annotations

from triptych.contracts.card import Instance


class Leases:
    """Holds instances by key, each with the time at which it counts as dead unless its lease is renewed before.

    ``version`` changes whenever ``snapshot`` does.
    """

    def __init__(self, lease_s: float, grace_s: float) -> None:
        self._lease_s = lease_s
        self._grace_s = grace_s
        self._instances: dict[str, Instance] = {}
        self._due: dict[str, float] = {}
        self.version = 0

    def __len__(self) -> int:
        return len(self._instances)

    def found(self, key: str, instance: Instance, now: float, age_s: float) -> None:
        """Takes note that ``instance`` was found in the store, where it had been for ``age_s``.

        Its owner may be on its way back: a grace that runs is not cut short.
        """
        due = now - age_s + self._lease_s
        if self._instances.get(key) == instance:
            due = max(due, self._due[key])
        self._hold(key, instance, due)

    def renewed(self, key: str, instance: Instance, now: float) -> None:
        """Takes note that the owner renewed its lease just now."""
        self._hold(key, instance, now + self._lease_s)

    def _hold(self, key: str, instance: Instance, due: float) -> None:
        self._due[key] = due
        if self._instances.get(key) != instance:
            self._instances[key] = instance
            self.version += 1

    def ended(self, key: str) -> None:
        """Takes note that the owner gave its lease back."""
        if self._instances.pop(key, None) is not None:
            del self._due[key]
            self.version += 1

    def forgive(self, now: float) -> None:
        """Extends all leases: the store was away and is back, and owners need time to return."""
        self._due = dict.fromkeys(self._due, now + self._grace_s)

    def next_due(self) -> float | None:
        return min(self._due.values(), default=None)

    def expire(self, now: float) -> None:
        """Drops the leases that have ended by ``now``."""
        for key in [key for key, due in self._due.items() if due <= now]:
            self.ended(key)

    def snapshot(self) -> tuple[Instance, ...]:
        """Returns the live instances, sorted by id."""
        return tuple(sorted(self._instances.values(), key=lambda instance: instance.id))
