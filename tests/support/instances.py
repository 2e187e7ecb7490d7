"""Makes instances as workers would register them."""

from __future__ import annotations

from typing import Any

from triptych.contracts.card import Instance, ModelCard
from triptych.contracts.kv_link import KvLink
from triptych.contracts.spans import Span
from triptych.demo import MODEL_DIR

CARD = ModelCard(name="demo", path=str(MODEL_DIR), context_length=4096)


def instance(
    id: str = "w", span: str = "epd", *, capable_span: str = "", model: ModelCard = CARD, port: int = 1, **fields: Any
) -> Instance:
    """``capable_span`` is the span where it is left out; ``name`` the id; ``kv_link`` the same for all."""
    defaults = {"name": id, "component": "w", "engine": "mock", "host": "127.0.0.1", "kv_link": KvLink(protocol="mock")}
    settings: dict[str, Any] = {**defaults, **fields}
    return Instance(id=id, span=Span(span), capable_span=Span(capable_span or span), model=model, port=port, **settings)
