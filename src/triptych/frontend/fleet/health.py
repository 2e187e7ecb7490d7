"""Answers ``GET /live``, ``/ready`` and ``/health``: whether the frontend runs, and its models can be served."""

from __future__ import annotations

import msgspec

from triptych.contracts.errors import Unavailable
from triptych.frontend.fleet.catalog import Catalog
from triptych.frontend.fleet.model_view import health_of
from triptych.frontend.http.asgi import send_json
from triptych.frontend.http.in_flight import InFlight
from triptych.frontend.http.web_request import WebRequest
from triptych.stages.compose import RETRY_AFTER_S


async def live(web: WebRequest) -> None:
    """Says that the process answers."""
    await send_json(web.send, b'{"status":"live"}', web.headers)


async def ready(catalog: Catalog, web: WebRequest) -> None:
    """Says that every expected model can be served. Raises Unavailable with what is missing."""
    if not catalog.ready:
        raise Unavailable(_why_not_ready(catalog), code="not_ready", retry_after_s=RETRY_AFTER_S)
    await send_json(web.send, b'{"status":"ready"}', web.headers)


async def health(catalog: Catalog, in_flight: InFlight, web: WebRequest) -> None:
    """Describes each model's state, and what is in flight."""
    body = {
        "status": "ready" if catalog.ready else "not ready",
        "requests_in_flight": in_flight.requests,
        "generations_in_flight": in_flight.generations,
        "models": {name: health_of(model) for name, model in sorted(catalog.models.items())},
    }
    await send_json(web.send, msgspec.json.encode(body), web.headers)


def _why_not_ready(catalog: Catalog) -> str:
    if not catalog.models:
        return f"no worker is alive yet{catalog.looked_in}"
    problems = "; ".join(
        f"{name}: {model.problem or model.gap('pd')}" for name, model in sorted(catalog.models.items())
    )
    return problems + catalog.looked_in
