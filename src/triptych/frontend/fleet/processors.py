"""Loads each model's processor from the checkpoint's files, here or from a worker, and tries again if that may help."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.errors import ConfigError, TriptychError
from triptych.contracts.shortage import shortage_of
from triptych.frontend.fleet.model import Model, card_for_all
from triptych.processor.processor import Processor

log = logging.getLogger("triptych.fleet")

FETCH_AGAIN_S = 0.5
MAX_FETCH_AGAIN_S = 15.0


class FilesSource(Protocol):
    """The part of ``model_files.ModelFiles`` that the loader needs."""

    async def local(self, card: ModelCard) -> str | None: ...

    async def fetch(self, card: ModelCard, instances: Iterable[Instance]) -> str: ...


class ProcessorLoader:
    """Sets ``Model.processor``, or ``Model.problem`` if that fails.

    Owns the tasks that fetch and load in the background; ``close`` cancels them.
    """

    def __init__(self, load: Callable[[ModelCard], Processor], files: FilesSource) -> None:
        """``load`` reads the files in the card's folder (it is called in a thread). ``files`` finds that folder."""
        self._load = load
        self._files = files
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def load(self, model: Model, card: ModelCard) -> None:
        """Loads the processor of ``card`` if its files are on this host; otherwise begins to fetch them from a worker.

        Fetching goes on in the background, while other models' workers come and go.
        """
        if (folder := await self._files.local(card)) is not None:
            await self._load_from(folder, model, card)
            return
        model.processor = None
        if not self.is_busy(card.name):
            model.problem = "its files are being fetched from a worker"
            task = asyncio.create_task(self._fetch(model), name=f"fetch the files of {card.name}")
            self._tasks[card.name] = task

    def is_busy(self, name: str) -> bool:
        """Returns whether a processor of the model ``name`` is being fetched or loaded in the background."""
        task = self._tasks.get(name)
        return task is not None and not task.done()

    def forget(self, name: str) -> None:
        """Drops a model that has no workers: its task, if any, ends by itself."""
        self._tasks.pop(name, None)

    async def close(self) -> None:
        """Cancels all tasks and waits for them. May be called twice."""
        for task in (tasks := list(self._tasks.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, model: Model) -> None:
        """Fetches and loads until there is a processor, or no worker is left to ask."""
        delay_s, logged = FETCH_AGAIN_S, ""
        await asyncio.sleep(0)  # lets the caller set ``instances``
        while model.processor is None and model.instances:
            card = card_for_all(model.instances)
            try:
                folder = await self._files.fetch(card, model.instances)
            except (TriptychError, ConfigError) as error:
                model.problem = str(error)
            else:
                if model.instances and card_for_all(model.instances) == card:
                    await self._load_from(folder, model, card)
                    return
                continue
            if model.problem != logged:
                logged = model.problem
                log.error("model %s cannot be served yet: %s", card.name, logged)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MAX_FETCH_AGAIN_S)

    async def _load_from(self, folder: str, model: Model, card: ModelCard) -> None:
        try:
            model.processor = await asyncio.to_thread(self._load, msgspec.structs.replace(card, path=folder))
            model.prepare_processor()
            model.card, model.problem = card, None
        except ConfigError as error:
            model.processor, model.problem = None, str(error)
            log.error("model %s cannot be served: %s", card.name, error)
        except Exception as error:  # a fault in one checkpoint's files must not affect other models
            if (short := shortage_of(error)) is not None:
                self._load_again(folder, model, card, short.message)
                return
            model.processor, model.problem = None, "its files cannot be read; the frontend's log has the cause"
            log.exception("model %s cannot be served", card.name)

    def _load_again(self, folder: str, model: Model, card: ModelCard, problem: str) -> None:
        """Loads again later, in the background: the machine was short of something, and the files are not at fault."""
        model.processor, model.problem = None, problem
        log.warning("model %s cannot be served yet: %s", card.name, problem)

        async def again() -> None:
            await asyncio.sleep(FETCH_AGAIN_S)
            if model.processor is None and model.instances and card_for_all(model.instances) == card:
                await self._load_from(folder, model, card)

        self._tasks[card.name] = asyncio.create_task(again(), name=f"load {card.name} again")
