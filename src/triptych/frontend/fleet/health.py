"""Answers ``GET /live``, ``/ready`` and ``/health``: whether the frontend runs, and its models can be served."""

from __future__ import annotations

import msgspec

from triptych.contracts.errors import Unavailable
from triptych.frontend.fleet.model_registry import ModelRegistry
from triptych.frontend.fleet.model_view import health_of
from triptych.frontend.http.asgi import send_json
from triptych.frontend.http.in_flight import InFlight
from triptych.frontend.http.web_request import WebRequest
from triptych.stages.compose import RETRY_AFTER_S


async def live(web: WebRequest) -> None:
    """Answers 200, because the process runs."""
    await send_json(web.send, b'{"status":"live"}', web.headers)


async def ready(registry: ModelRegistry, web: WebRequest) -> None:
    """Answers 200 if every expected model can be served. Raises Unavailable that says what is missing."""
    if not registry.ready:
        raise Unavailable(_why_not_ready(registry), code="not_ready", retry_after_s=RETRY_AFTER_S)
    await send_json(web.send, b'{"status":"ready"}', web.headers)


async def health(registry: ModelRegistry, in_flight: InFlight, web: WebRequest) -> None:
    """Answers with each model's state, and with the number of requests in flight."""
    body = {
        "status": "ready" if registry.ready else "not ready",
        "requests_in_flight": in_flight.requests,
        "generations_in_flight": in_flight.generations,
        "models": {name: health_of(model) for name, model in sorted(registry.models.items())},
    }
    await send_json(web.send, msgspec.json.encode(body), web.headers)


def _why_not_ready(registry: ModelRegistry) -> str:
    if not registry.models:
        return f"no worker is alive yet{registry.looked_in}"
    problems = "; ".join(
        f"{name}: {model.problem or model.why_unavailable('pd')}" for name, model in sorted(registry.models.items())
    )
    return problems + registry.looked_in
