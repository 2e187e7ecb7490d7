"""Holds one served model: its card, its workers and its processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import time

import msgspec

from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.spans import Mode, Span, modes_of
from triptych.processor.processor import Processor
from triptych.stages.compose import missing_stages

MAX_REASONS = 3
"""The limit on workers whose reasons are named in one message."""


@dataclass
class Model:
    """Holds what the frontend knows of a model. ``instances`` is replaced, never changed, at every snapshot."""

    card: ModelCard
    instances: tuple[Instance, ...] = ()
    processor: Processor | None = None
    problem: str | None = None
    """Why the processor could not be loaded; None if it could be, or was not tried."""
    created_unix_s: int = field(default_factory=lambda: int(time()))
    trouble: Callable[[Instance], str | None] = lambda instance: None
    """Returns why an instance cannot be reached, or None if no reason is known."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the live workers make complete."""
        return modes_of(instance.span for instance in self.instances)

    @property
    def ready(self) -> bool:
        """Whether a request for text can be served now."""
        return self.processor is not None and self.why_unavailable("pd") is None

    def why_unavailable(self, stages: str) -> str | None:
        """Says why ``stages`` cannot run now: the missing span, or the workers out of reach. None if they can."""
        if missing := missing_stages(stages, self.instances):
            return missing
        troubles = {instance: why for instance in self.instances if (why := self.trouble(instance))}
        if missing_stages(stages, [instance for instance in self.instances if instance not in troubles]) is None:
            return None
        reasons = "; ".join(f"{instance.name}: {why}" for instance, why in list(troubles.items())[:MAX_REASONS])
        return f"{len(troubles)} of {len(self.instances)} workers that are alive cannot be spoken to: {reasons}"

    def prepare_processor(self) -> None:
        """Has the processor name the blocks of prompts where workers report what their KV caches hold."""
        if isinstance(self.processor, Processor):
            self.processor.names_blocks = any(instance.reports_kv for instance in self.instances)


def card_for_all(instances: Sequence[Instance]) -> ModelCard:
    """Merges the cards of a model's ``instances`` (not empty): its limits hold wherever a request goes.

    The cards of workers that only encode do not limit the prompt's length.
    """
    limiting = [instance.model for instance in instances if instance.span is not Span.E] or [
        instance.model for instance in instances
    ]
    return msgspec.structs.replace(
        instances[0].model,
        context_length=min(card.context_length for card in limiting),
        max_logprobs=min((card.max_logprobs for card in limiting), key=lambda limit: (limit < 0, limit)),
    )


def is_same_model(card: ModelCard, other: ModelCard) -> bool:
    """Compares two cards. Workers on different hosts may have the same files in different places."""
    if card.files_digest and card.files_digest == other.files_digest:
        other = msgspec.structs.replace(other, path=card.path)
    return card == other
