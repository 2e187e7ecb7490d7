"""Instances as workers would register them."""

from __future__ import annotations

from typing import Any

from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.spans import Span
from triptych.demo import MODEL_DIR

CARD = ModelCard(name="demo", path=str(MODEL_DIR), context_length=4096)


def instance(id: str = "w", span: str = "epd", *, model: ModelCard = CARD, port: int = 1, **fields: Any) -> Instance:
    return Instance(
        id=id, component="w", span=Span(span), engine="mock", model=model, host="127.0.0.1", port=port, **fields
    )
