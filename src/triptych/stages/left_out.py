"""Workers that get no request for a while, for they lately failed one."""

from __future__ import annotations

MAX_LEFT_OUT_S = 60.0


class LeftOut:
    """Workers that get no request while another can take it. Times come from the caller, all of one clock."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._for_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._for_s)

    def add(self, worker: str, for_s: float, now: float) -> None:
        """Leave ``worker`` out for ``for_s``; twice as long as the last time, where nobody has heard of it since."""
        if not for_s or self._until.get(worker, 0.0) >= now + for_s:
            return
        if worker in self._for_s and worker not in self.at(now):
            for_s = min(max(for_s, 2 * self._for_s[worker]), MAX_LEFT_OUT_S)
        self._until[worker], self._for_s[worker] = now + for_s, for_s

    def at(self, now: float) -> set[str]:
        """Return who is left out now."""
        if not self._until:
            return set()
        return {worker for worker, until in self._until.items() if until > now}

    def heard(self, worker: str, now: float) -> None:
        """``worker`` has begun an answer. That of a request from before it was left out says nothing of it now."""
        if self._for_s and self._until.get(worker, now) < now:
            self.forget(worker)

    def forget(self, worker: str) -> None:
        """Discovery dropped ``worker``: should it come again, it is taken like any other."""
        self._until.pop(worker, None)
        self._for_s.pop(worker, None)
