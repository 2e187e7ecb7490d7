"""The models that can be served now, read off discovery: instances, processors, modes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import time
from typing import Protocol

import msgspec

from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.errors import ConfigError, NotFound, TriptychError, Unavailable
from triptych.contracts.shortage import shortage_of
from triptych.contracts.shown import shown
from triptych.contracts.spans import Mode, Span, modes_of
from triptych.contracts.suggest import suggested_to_client
from triptych.frontend.fleet.known_models import KnownModels
from triptych.planes.discovery.base import Discovery
from triptych.processor.processor import Processor
from triptych.stages.compose import RETRY_AFTER_S, missing_stages

log = logging.getLogger("triptych.catalog")


FETCH_AGAIN_S = 0.5
MAX_FETCH_AGAIN_S = 15.0
MAX_TOLD = 3
"""Workers whose trouble is told in one line."""
MAX_NAMED = 20
"""Models that are named to a client who asks for another one."""
MAX_GONE_MODELS = 8
"""Models without workers whose processor is kept: they take as much memory as any other's."""


class FilesSource(Protocol):
    """What the catalog needs of ``frontend.model_files.ModelFiles``."""

    async def local(self, card: ModelCard) -> str | None: ...

    async def fetch(self, card: ModelCard, instances: Iterable[Instance]) -> str: ...


class _AsTheCardSays:
    async def local(self, card: ModelCard) -> str | None:
        return card.path

    async def fetch(self, card: ModelCard, instances: Iterable[Instance]) -> str:
        return card.path


@dataclass
class Model:
    """One served model. ``instances`` is replaced, never changed, at every discovery snapshot."""

    card: ModelCard
    instances: tuple[Instance, ...] = ()
    processor: Processor | None = None
    problem: str | None = None
    """Why there is no processor, where loading it failed."""
    created_unix_s: int = field(default_factory=lambda: int(time()))
    trouble: Callable[[Instance], str | None] = lambda instance: None
    """Why an instance cannot be spoken to; None: nothing is known against it."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        return modes_of(instance.span for instance in self.instances)

    @property
    def ready(self) -> bool:
        return self.processor is not None and self.gap("pd") is None

    def gap(self, stages: str) -> str | None:
        """What is missing to run ``stages``, in words: a span, or word of those that have it; None: nothing is."""
        if missing := missing_stages(stages, self.instances):
            return missing
        troubles = {one: why for one in self.instances if (why := self.trouble(one))}
        if missing_stages(stages, [one for one in self.instances if one not in troubles]) is None:
            return None
        told = "; ".join(f"{one.name}: {why}" for one, why in list(troubles.items())[:MAX_TOLD])
        return f"{len(troubles)} of {len(self.instances)} workers that are alive cannot be spoken to: {told}"


class Catalog:
    """Follows discovery, and says of any model whether it can be asked, may be tried again (503), or does not exist."""

    def __init__(
        self,
        discovery: Discovery,
        load: Callable[[ModelCard], Processor],
        on_gone: Callable[[Instance], None] = lambda instance: None,
        on_change: Callable[[tuple[Instance, ...]], None] = lambda instances: None,
        files: FilesSource | None = None,
        trouble: Callable[[Instance], str | None] = lambda instance: None,
        expected: Iterable[str] = (),
        where: str = "",
    ) -> None:
        """``files``: where a model's files are; left out, they are where its card says. ``trouble``: ``Model``'s.
        ``expected``: models that exist, although their workers may not be there yet. ``where``: where workers are
        looked for, in words."""
        self.looked_in = f" (looked in {where})" if where else ""
        self._known = KnownModels(expected)
        self._trouble = trouble
        self._discovery = discovery
        self._load = load
        self._files = files or _AsTheCardSays()
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._on_gone = on_gone
        self._on_change = on_change
        self.models: dict[str, Model] = {}
        self.first_snapshot = asyncio.Event()

    async def follow(self) -> None:
        """Keep ``models`` true until cancelled."""
        try:
            async with aclosing(self._discovery.watch()) as snapshots:
                async for snapshot in snapshots:
                    await self._apply(snapshot)
                    self.first_snapshot.set()
        finally:
            for task in (tasks := list(self._fetching.values())):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _apply(self, snapshot: tuple[Instance, ...]) -> None:
        alive = {instance.id for instance in snapshot}
        for gone in {i for model in self.models.values() for i in model.instances if i.id not in alive}:
            log.info("worker %s is gone", gone.id)
            self._on_gone(gone)
        by_name: dict[str, list[Instance]] = {name: [] for name in self.models}
        for instance in snapshot:
            by_name.setdefault(instance.model.name, []).append(instance)
        self._known.served(name for name, instances in by_name.items() if instances)
        for name, instances in by_name.items():  # before any is loaded, which takes its time
            if name not in self.models:
                self.models[name] = Model(instances[0].model, trouble=self._trouble)
        for name, instances in by_name.items():
            await self._update(name, tuple(instances))
        self._drop_gone()
        self._on_change(snapshot)

    def _drop_gone(self) -> None:
        """Keep few of the models without workers: those that were served last."""
        gone = [name for name in self._known.by_age(self.models) if not self.models[name].instances]
        for name in gone[: max(0, len(gone) - MAX_GONE_MODELS)]:
            del self.models[name]
            self._fetching.pop(name, None)  # it ends by itself, without workers to ask

    async def _update(self, name: str, instances: tuple[Instance, ...]) -> None:
        model = self.models[name]
        for instance in instances:
            if instance not in model.instances:
                log.info("worker %s serves %s as %s", instance.id, name, instance.span.value)
        if instances and (model.processor is None or not _say_the_same(model.card, card_for_all(instances))):
            await self._load_or_fetch(model, card_for_all(instances))
        model.instances = instances
        _prepare_for(model)

    async def _load_or_fetch(self, model: Model, card: ModelCard) -> None:
        """What must come from a worker comes in the background: other models' workers come and go meanwhile."""
        if (folder := await self._files.local(card)) is not None:
            await self._load_processor(model, card, folder)
            return
        model.processor = None
        if (task := self._fetching.get(card.name)) is None or task.done():
            model.problem = "its files are being fetched from a worker"
            task = asyncio.create_task(self._fetch(model), name=f"fetch the files of {card.name}")
            self._fetching[card.name] = task

    async def _fetch(self, model: Model) -> None:
        """Fetch and load, for as long as there are workers to ask and no processor."""
        delay_s, said = FETCH_AGAIN_S, ""
        await asyncio.sleep(0)  # until ``instances`` are there
        while model.processor is None and model.instances:
            card = card_for_all(model.instances)
            try:
                folder = await self._files.fetch(card, model.instances)
            except (TriptychError, ConfigError) as error:
                model.problem = str(error)
            else:
                if model.instances and card_for_all(model.instances) == card:
                    await self._load_processor(model, card, folder)
                    return
                continue
            if model.problem != said:
                said = model.problem
                log.error("model %s cannot be served yet: %s", card.name, said)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MAX_FETCH_AGAIN_S)

    async def _load_processor(self, model: Model, card: ModelCard, folder: str) -> None:
        try:
            model.processor = await asyncio.to_thread(self._load, msgspec.structs.replace(card, path=folder))
            _prepare_for(model)
            model.card, model.problem = card, None
        except ConfigError as error:
            model.processor, model.problem = None, str(error)
            log.error("model %s cannot be served: %s", card.name, error)
        except Exception as error:  # one checkpoint's files must not take the other models down
            if (short := shortage_of(error)) is not None:
                self._load_again(model, card, folder, short.message)
                return
            model.processor, model.problem = None, "its files cannot be read; the frontend's log has the cause"
            log.exception("model %s cannot be served", card.name)

    def _load_again(self, model: Model, card: ModelCard, folder: str, problem: str) -> None:
        """Load in a while, in the background: the machine was short of something, and the files are not to blame."""
        model.processor, model.problem = None, problem
        log.warning("model %s cannot be served yet: %s", card.name, problem)

        async def again() -> None:
            await asyncio.sleep(FETCH_AGAIN_S)
            if model.processor is None and model.instances and card_for_all(model.instances) == card:
                await self._load_processor(model, card, folder)

        self._fetching[card.name] = asyncio.create_task(again(), name=f"load {card.name} again")

    def get(self, name: str) -> tuple[Model, Processor]:
        """The model by its name, ready to be asked. Raises what ``find`` does, and Unavailable without its files."""
        model = self.find(name)
        if model.processor is None:
            raise _not_loaded(name, model)
        return model, model.processor

    def is_known(self, name: str) -> bool:
        """Return whether workers serve ``name``, or did lately, or are expected to."""
        return name in self.models or name in self._known

    def find(self, name: str) -> Model:
        """A model that has workers. Raises NotFound, listing the others, only where it is certain that nobody serves
        it; otherwise Unavailable, since its workers may come."""
        model = self.models.get(name)
        if model is not None and model.instances:
            return model
        if model is not None and model.processor is None and model.problem is None:
            raise _not_loaded(name, model)  # for the first time: its workers are told of when it is
        if model is not None or name in self._known:
            raise _no_worker(f"no worker for model {shown(name)} is alive{self.looked_in}")
        if not any(one.instances for one in self.models.values()):
            raise _no_worker(f"no worker is alive yet{self.looked_in}")
        if (doubt := self._discovery.doubt(name)) is not None:
            raise Unavailable(
                f"model {shown(name)} cannot be served now: {doubt}",
                code="discovery_unsettled",
                retry_after_s=RETRY_AFTER_S,
            )
        hint = suggested_to_client(name, self.models) or ";"
        raise NotFound(
            f"model {shown(name)} does not exist{hint} served here: {self._names()}{self.looked_in}",
            param="model",
            code="model_not_found",
        )

    def _names(self) -> str:
        names = sorted(self.models)
        return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" * (len(names) > MAX_NAMED))

    @property
    def ready(self) -> bool:
        return any(model.ready for model in self.models.values())


def _not_loaded(name: str, model: Model) -> Unavailable:
    problem = model.problem or "its files are being loaded"
    reason = f"model {shown(name)} cannot be served: {problem}"
    return Unavailable(reason, code="model_not_loaded", retry_after_s=RETRY_AFTER_S)


def _no_worker(reason: str) -> Unavailable:
    return Unavailable(f"{reason}; try again", code="no_worker", retry_after_s=RETRY_AFTER_S)


def card_for_all(instances: Sequence[Instance]) -> ModelCard:
    """A model's card, with limits that hold wherever its requests go. ``instances`` is not empty.

    Those that only encode say nothing of the prompt's length.
    """
    limiting = [one.model for one in instances if one.span is not Span.E] or [one.model for one in instances]
    return msgspec.structs.replace(
        instances[0].model,
        context_length=min(one.context_length for one in limiting),
        max_logprobs=min((one.max_logprobs for one in limiting), key=lambda most: (most < 0, most)),
    )


def _prepare_for(model: Model) -> None:
    """Have the processor name the blocks of prompts where workers report what their KV caches hold."""
    if isinstance(model.processor, Processor):
        model.processor.names_blocks = any(one.reports_kv for one in model.instances)


def _say_the_same(one: ModelCard, other: ModelCard) -> bool:
    """Workers on different hosts may have the same files in different places."""
    if one.files_digest and one.files_digest == other.files_digest:
        other = msgspec.structs.replace(other, path=one.path)
    return one == other
