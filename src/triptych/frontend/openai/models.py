"""Answers ``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

import msgspec

from triptych.frontend.fleet.model_registry import ModelRegistry
from triptych.frontend.fleet.model_view import card_of
from triptych.frontend.http.asgi import send_json
from triptych.frontend.http.web_request import WebRequest

PATH = "/v1/models"


async def list_models(registry: ModelRegistry, web: WebRequest) -> None:
    """Answers with all models that a worker serves now."""
    cards = [card_of(model) for _, model in sorted(registry.models.items()) if model.instances]
    await send_json(web.send, msgspec.json.encode({"object": "list", "data": cards}), web.headers)


async def show_model(registry: ModelRegistry, web: WebRequest) -> None:
    """Answers with the model that the path names. Raises NotFound."""
    name = web.path.removeprefix(f"{PATH}/")
    await send_json(web.send, msgspec.json.encode(card_of(registry.find(name))), web.headers)
