"""Remembers the workers that get no request for a while, because they lately failed one."""

from __future__ import annotations

MAX_EXCLUDED_S = 60.0


class ExcludedWorkers:
    """Workers that get no request while another can take it. Times come from the caller, all of one clock."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._for_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._for_s)

    def add(self, worker: str, for_s: float, now: float) -> None:
        """Excludes ``worker`` for ``for_s``, or for twice as long as last time if it has not answered since."""
        if not for_s or self._until.get(worker, 0.0) >= now + for_s:
            return
        if worker in self._for_s and worker not in self.at(now):
            for_s = min(max(for_s, 2 * self._for_s[worker]), MAX_EXCLUDED_S)
        self._until[worker], self._for_s[worker] = now + for_s, for_s

    def at(self, now: float) -> set[str]:
        """Returns the workers that are excluded at ``now``."""
        if not self._until:
            return set()
        return {worker for worker, until in self._until.items() if until > now}

    def answered(self, worker: str, now: float) -> None:
        """Forgets that ``worker``, which has begun an answer, was excluded. An answer that comes while
        the worker is excluded changes nothing, because it was asked for before."""
        if self._for_s and self._until.get(worker, now) < now:
            self.forget(worker)

    def forget(self, worker: str) -> None:
        """Forgets ``worker``, which discovery has dropped. If it comes again, it is treated like any other worker."""
        self._until.pop(worker, None)
        self._for_s.pop(worker, None)
