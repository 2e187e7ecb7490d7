"""What a worker tells whoever follows it: changes of its KV cache, and what it has to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from triptych.cache.kv_log import KvLog
from triptych.contracts.kv_events import KvBatch, Load, News
from triptych.contracts.request import GenerateRequest

LOAD_PERIOD_S = 0.25
"""How old what is known of a worker's load may be."""
HEARTBEAT_S = 1.0
"""Something is said at least so often, so that a follower notices a peer that is silent for good."""


class Account:
    """Work in a worker now, by the frontend that sent it."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}

    def others(self, origin: str) -> Load:
        """Of all frontends but ``origin``."""
        loads = [load for name, load in self._loads.items() if name != origin]
        return Load(
            sum(one.prefill_tokens for one in loads),
            sum(one.kv_tokens for one in loads),
            sum(one.requests for one in loads),
        )

    @contextmanager
    def taken(self, request: GenerateRequest) -> Iterator[_Entry]:
        """``request`` is here, for the block."""
        entry = _Entry(self, request)
        try:
            yield entry
        finally:
            entry.close()

    def add(self, origin: str, prefill_tokens: int, kv_tokens: int, requests: int) -> None:
        load = self._loads.get(origin, Load())
        load = Load(load.prefill_tokens + prefill_tokens, load.kv_tokens + kv_tokens, load.requests + requests)
        self._loads[origin] = load
        if load == Load():
            del self._loads[origin]


class _Entry:
    def __init__(self, account: Account, request: GenerateRequest) -> None:
        self._account = account
        self._origin = request.origin
        self._tokens = (request.prompt_tokens or len(request.token_ids)) + len(request.said)
        self._waiting = 0 if request.kv is not None else self._tokens
        account.add(self._origin, self._waiting, self._tokens, 1)

    def prefilled(self) -> None:
        """Its first token is there. May be called again."""
        if self._waiting:
            self._account.add(self._origin, -self._waiting, 0, 0)
            self._waiting = 0

    def close(self) -> None:
        self.prefilled()
        self._account.add(self._origin, 0, -self._tokens, -1)


async def news(log: KvLog, account: Account, origin: str) -> AsyncGenerator[News, None]:
    """For the frontend ``origin``: all that there is, and then what changes, until ``log`` is closed. Never silent for
    long."""
    async with aclosing(log.follow()) as batches:
        waiting = asyncio.ensure_future(anext(batches, None))
        said: Load | None = None
        silent_s = 0.0
        try:
            while True:
                await asyncio.wait({waiting}, timeout=LOAD_PERIOD_S)
                batch: KvBatch | None = None
                if waiting.done():
                    if (batch := waiting.result()) is None:
                        return
                    waiting = asyncio.ensure_future(anext(batches, None))
                now = account.others(origin)
                load = now if now != said else None
                silent_s = 0.0 if batch or load else silent_s + LOAD_PERIOD_S
                if batch or load or silent_s >= HEARTBEAT_S:
                    said, silent_s = now, 0.0
                    yield News(batch, load)
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})
