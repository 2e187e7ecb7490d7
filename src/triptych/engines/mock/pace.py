"""Paces the mock engine by a model of a real engine, with its steps in real time, its prefix cache and KV events."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, groupby

from triptych.contracts.errors import BadRequest
from triptych.contracts.kv_events import KvChange, packed
from triptych.kv.block_hash import block_hashes, root
from triptych.kv.log import KvLog
from triptych.kv.prompt_keys import content_token
from triptych.simulate.engine_model import EmbeddingCacheModel, EngineJob, EngineModel
from triptych.simulate.profiles import SECOND, Profile


class Turn:
    """Tracks one request at the simulated model."""

    def __init__(self, job: EngineJob) -> None:
        self.job = job
        self.changed = asyncio.Event()
        self._seen = job.made

    @property
    def cached_tokens(self) -> int:
        """Tokens at the prompt's start that the prefix cache had; known once there is a token."""
        return max(0, self.job.cached_tokens)

    async def token(self) -> None:
        """Waits until the next token is there."""
        self._seen += 1
        while self.job.made < self._seen:
            self.changed.clear()
            await self.changed.wait()


class Pace:
    """Takes an ``EngineModel``'s steps as time goes by. For one event loop, between ``start`` and ``close``."""

    def __init__(self, profile: Profile, block_size: int) -> None:
        self._profile = profile
        self._block_size = block_size
        self._model = EngineModel(profile, block_size, together=False)
        self._embeddings = EmbeddingCacheModel(profile.embedding_cache_tokens)
        self._encoder = asyncio.Lock()
        self._turns: dict[int, Turn] = {}
        self._ids = count()
        self._submitted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.log = KvLog(self._snapshot)

    def start(self) -> None:
        self._task = asyncio.create_task(self._steps(), name="pace of the mock engine")

    async def close(self) -> None:
        """Ends the request. May be called twice."""
        self.log.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def failed(self) -> str:
        """Waits until the steps end though nobody closed this, and returns the cause."""
        assert self._task is not None
        await asyncio.wait({self._task})
        if self._task.cancelled():
            await asyncio.Event().wait()
        return f"the modelled engine stopped: {self._task.exception()!r}"

    # These methods take the time that the real engine takes.

    async def encode(self, media: Sequence[tuple[str, int]]) -> None:
        """Waits as long as encoding takes.

        ``media`` are (content hash, tokens). One call runs after another; cached media cost nothing.
        """
        async with self._encoder:
            if lacked := self._embeddings.lacked([(content_token(name), tokens) for name, tokens in media]):
                await asyncio.sleep(self._profile.rates.encoding(lacked) / SECOND)

    async def fetch_kv(self, tokens: int) -> None:
        """Waits as long as fetching the KV cache of so many tokens takes."""
        await asyncio.sleep(self._profile.rates.moving(tokens * self._profile.rates.kv_token_bytes) / SECOND)

    @contextmanager
    def turn(
        self,
        tokens: array[int],
        output_tokens: int,
        media: Sequence[tuple[str, int]] = (),
        made: int = 0,
        salt: str = "",
    ) -> Iterator[Turn]:
        """Runs a request whose prompt is ``tokens`` (as ``kv.block_hash`` names them) on the simulated model, within
        the block.

        Prompts with different ``salt`` share no blocks. ``made`` is the number of output tokens made by the worker that
        the KV cache comes from, or 0 if the prompt is prefilled here. Raises BadRequest for a request that could never
        fit into the cache.
        """
        if not self._model.fits(len(tokens) + output_tokens):
            raise BadRequest(
                f"{len(tokens) + output_tokens} tokens do not fit a KV cache of {self._profile.kv_tokens}",
                param="prompt",
            )
        job = EngineJob(
            next(self._ids),
            len(tokens),
            output_tokens,
            block_hashes(tokens, self._block_size, root(salt=salt)),
            [(content_token(name), count) for name, count in media],
            arrived_kv=made > 0,
            made=made,
        )
        turn = self._turns[job.id] = Turn(job)
        self._model.submit(job)
        self._submitted.set()
        try:
            yield turn
        finally:
            del self._turns[job.id]
            self._model.abort(job)

    # These methods are about the prefix cache.

    def clear_prefixes(self) -> None:
        """Forgets all KV blocks, and reports that. No request may be at the model."""
        self._model.pool.clear()
        self._publish()

    def clear_embeddings(self) -> None:
        self._embeddings = EmbeddingCacheModel(self._profile.embedding_cache_tokens)

    # The model's steps.

    async def _steps(self) -> None:
        now = asyncio.get_running_loop().time
        at = now()
        while True:
            step = self._model.plan()
            self._publish()
            if step is None:
                self._submitted.clear()
                await self._submitted.wait()
                at = now()
                continue
            at += step.duration(1) / SECOND
            await asyncio.sleep(at - now())
            self._model.finish(step)
            for job, _ in step.work:
                if turn := self._turns.get(job.id):
                    turn.changed.set()

    def _publish(self) -> None:
        rows = groupby(self._model.pool.changes(), key=lambda change: (change.level, change.stored))
        self.log.publish([KvChange(*key, packed([change.hash for change in changes])) for key, changes in rows])

    def _snapshot(self) -> list[KvChange]:
        pool = self._model.pool
        held = [KvChange(level, True, packed(pool.hashes(level))) for level in pool.levels]
        return [change for change in held if change.hashes]
