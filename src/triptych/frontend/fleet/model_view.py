"""Describes a model to clients and operators: its card and its health."""

from __future__ import annotations

from typing import Any

from triptych.aio.listeners import authority
from triptych.frontend.fleet.model import Model


def card_of(model: Model) -> dict[str, Any]:
    return {
        "id": model.card.name,
        "object": "model",
        "created": model.created_unix_s,
        "owned_by": "triptych",
        "max_model_len": model.card.context_length,
        "modalities": ["text", *model.card.modalities],
    }


def health_of(model: Model) -> dict[str, Any]:
    return {
        "ready": model.ready,
        "mode": "+".join(mode.value for mode in model.modes) or None,
        "problem": model.problem
        or (model.why_unavailable("epd" if model.card.modalities else "pd") if model.processor else None),
        "instances": [
            {
                "id": instance.id,
                "name": instance.name,
                "span": instance.span.value,
                "capable_span": instance.capable_span.value,
                "engine": instance.engine,
                "abilities": instance.abilities,
                "address": authority(instance.host, instance.port),
            }
            for instance in model.instances
        ],
    }
