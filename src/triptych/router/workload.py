"""What each worker has to do: what this frontend sent there, and what the worker says of other ones."""

from __future__ import annotations

from typing import NamedTuple


class Work(NamedTuple):
    """Of one worker, or of one request."""

    prefill_tokens: int = 0
    """Tokens of prompts that wait to be prefilled, or are being."""
    kv_tokens: int = 0
    """Tokens in the KV caches of requests that run."""
    requests: int = 0

    def plus(self, other: Work) -> Work:
        return Work(
            self.prefill_tokens + other.prefill_tokens,
            self.kv_tokens + other.kv_tokens,
            self.requests + other.requests,
        )

    def less(self, other: Work) -> Work:
        """No part below 0."""
        return Work(
            max(0, self.prefill_tokens - other.prefill_tokens),
            max(0, self.kv_tokens - other.kv_tokens),
            max(0, self.requests - other.requests),
        )


NONE = Work()


class Workload:
    """For one event loop. Work that is begun must be ended."""

    def __init__(self) -> None:
        self._own: dict[str, Work] = {}
        self._others: dict[str, Work] = {}

    def begin(self, worker: str, work: Work) -> None:
        self._own[worker] = self._own.get(worker, NONE).plus(work)

    def end(self, worker: str, work: Work) -> None:
        """``work``, or a part of it, is done."""
        left = self._own.get(worker, NONE).less(work)
        if left == NONE:
            self._own.pop(worker, None)
        else:
            self._own[worker] = left

    def report(self, worker: str, work: Work) -> None:
        """What ``worker`` says that it has to do for other frontends."""
        self._others[worker] = work

    def forget(self, worker: str) -> None:
        """``worker`` is gone. What was begun there is still ended by those who began it."""
        self._others.pop(worker, None)

    def of(self, worker: str) -> Work:
        """This frontend's work at ``worker``, and that of others by its last report."""
        return self._own.get(worker, NONE).plus(self._others.get(worker, NONE))

    def requests(self, worker: str) -> int:
        """Of ``of(worker)``; asked of every worker for every request."""
        return self._own.get(worker, NONE).requests + self._others.get(worker, NONE).requests
