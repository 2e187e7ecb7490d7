"""Finds models by name: a model can be served, may be tried again later (503), or does not exist (404)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from triptych.contracts.card import Instance
from triptych.contracts.errors import NotFound, Unavailable
from triptych.contracts.shown import shown
from triptych.contracts.suggest import suggested_to_client
from triptych.frontend.fleet.known_models import KnownModels
from triptych.frontend.fleet.model import Model, card_for_all, is_same_model
from triptych.frontend.fleet.processors import ProcessorLoader
from triptych.processor.processor import Processor
from triptych.stages.compose import RETRY_AFTER_S

log = logging.getLogger("triptych.fleet")

MAX_NAMED = 20
"""The limit on models that are named to a client that asks for an unknown one."""
MAX_GONE_MODELS = 8
"""The limit on models without workers whose processor is kept, because each takes memory."""


class ModelRegistry:
    """Keeps a processor for each model that live workers serve, and finds models for requests."""

    def __init__(
        self,
        processors: ProcessorLoader,
        expected: Iterable[str] = (),
        trouble: Callable[[Instance], str | None] = lambda instance: None,
        doubt: Callable[[str], str | None] = lambda name: None,
        where: str = "",
    ) -> None:
        """``expected`` names models that exist, although their workers may not be alive yet.

        ``trouble`` is passed to each ``Model``. ``doubt`` explains why discovery is not certain of a model's workers
        (``Discovery.doubt``). ``where`` says, for messages, where workers are looked for.
        """
        self.looked_in = f" (looked in {where})" if where else ""
        self.models: dict[str, Model] = {}
        self._processors = processors
        self._known = KnownModels(expected)
        self._trouble = trouble
        self._doubt = doubt

    async def update(self, snapshot: tuple[Instance, ...]) -> None:
        """Takes the instances that are alive now, and loads the processors of new models, one after the other."""
        by_name: dict[str, list[Instance]] = {name: [] for name in self.models}
        for instance in snapshot:
            by_name.setdefault(instance.model.name, []).append(instance)
        self._known.served(name for name, instances in by_name.items() if instances)
        for name, instances in by_name.items():  # before any model is loaded, which takes time
            if name not in self.models:
                self.models[name] = Model(instances[0].model, trouble=self._trouble)
        for name, instances in by_name.items():
            await self._update(self.models[name], tuple(instances))
        self._drop_gone()

    async def close(self) -> None:
        """Stops loading. May be called twice."""
        await self._processors.close()

    async def _update(self, model: Model, instances: tuple[Instance, ...]) -> None:
        for instance in instances:
            if instance not in model.instances:
                log.info("worker %s serves %s as %s", instance.id, instance.model.name, instance.span.value)
        if instances and (model.processor is None or not is_same_model(model.card, card_for_all(instances))):
            await self._processors.load(model, card_for_all(instances))
        model.instances = instances
        model.prepare_processor()

    def _drop_gone(self) -> None:
        """Drops models without workers, except the few that were served last."""
        gone = [name for name in self._known.by_age(self.models) if not self.models[name].instances]
        for name in gone[: max(0, len(gone) - MAX_GONE_MODELS)]:
            del self.models[name]
            self._processors.forget(name)

    # Finding.

    def get(self, name: str) -> tuple[Model, Processor]:
        """Returns a model that can be asked now. Raises what ``find`` does, and Unavailable without its files."""
        model = self.find(name)
        if model.processor is None:
            raise _not_loaded(name, model)
        return model, model.processor

    def find(self, name: str) -> Model:
        """Returns a model that has workers. Raises NotFound, which lists the others, only if it is certain that
        nobody serves it; otherwise Unavailable, because its workers may come."""
        model = self.models.get(name)
        if model is not None and model.instances:
            return model
        if model is not None and model.processor is None and model.problem is None:
            raise _not_loaded(name, model)  # for the first time: its workers are told of when it is
        if model is not None or name in self._known:
            raise _no_worker(f"no worker for model {shown(name)} is alive{self.looked_in}")
        if not any(known.instances for known in self.models.values()):
            raise _no_worker(f"no worker is alive yet{self.looked_in}")
        if (doubt := self._doubt(name)) is not None:
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

    def is_known(self, name: str) -> bool:
        """Returns whether workers serve ``name``, served it lately, or are expected to serve it."""
        return name in self.models or name in self._known

    @property
    def ready(self) -> bool:
        """Whether any model can be served now."""
        return any(model.ready for model in self.models.values())

    def _names(self) -> str:
        names = sorted(self.models)
        return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" * (len(names) > MAX_NAMED))


def _not_loaded(name: str, model: Model) -> Unavailable:
    problem = model.problem or "its files are being loaded"
    reason = f"model {shown(name)} cannot be served: {problem}"
    return Unavailable(reason, code="model_not_loaded", retry_after_s=RETRY_AFTER_S)


def _no_worker(reason: str) -> Unavailable:
    return Unavailable(f"{reason}; try again", code="no_worker", retry_after_s=RETRY_AFTER_S)
