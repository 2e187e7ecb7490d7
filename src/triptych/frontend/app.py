"""Defines the ASGI application: its routes, the access to them, and the answers to errors."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from triptych.aio.reclaim import clear_traceback
from triptych.config.serve import FrontendConfig
from triptych.contracts.errors import BadRequest, MethodNotAllowed, NotFound, TriptychError
from triptych.contracts.shown import shown
from triptych.frontend.admin.routes import PREFIX, Admin
from triptych.frontend.fleet import health
from triptych.frontend.fleet.model_registry import ModelRegistry
from triptych.frontend.http.access import Access
from triptych.frontend.http.asgi import ClientGone, Receive, Scope, Send, header, send_error, send_json, send_whole
from triptych.frontend.http.failures import SHUTTING_DOWN, as_client_error
from triptych.frontend.http.in_flight import InFlight
from triptych.frontend.http.web_request import WebRequest
from triptych.frontend.openai import models
from triptych.frontend.openai.endpoints import ENDPOINTS
from triptych.frontend.openai.generations import Generations
from triptych.frontend.openai.resources import Resources
from triptych.observability.metrics import FrontendMetrics, MediaCounts
from triptych.observability.workers import families_of
from triptych.stages.dispatch import Dispatcher

log = logging.getLogger("triptych.frontend")

MODEL_PATH = f"{models.PATH}/{{id}}"
"""The label, in metrics, of the path of any model."""
Route = Callable[[WebRequest], Awaitable[None]]


class App:
    """One frontend's application."""

    def __init__(
        self,
        config: FrontendConfig,
        registry: ModelRegistry,
        resources: Resources,
        dispatcher: Dispatcher,
        media: MediaCounts | None = None,
        *,
        admin: Admin,
    ) -> None:
        self._config = config
        self._registry = registry
        self._dispatcher = dispatcher
        self._access = Access(config)
        in_flight = InFlight(config.max_in_flight)
        self.metrics = FrontendMetrics(lambda: in_flight.requests, media)
        generations = Generations(config, registry, resources, dispatcher, self._access, self.metrics, in_flight)
        for read in generations.metrics:
            self.metrics.add_source(read)
        self._document = b""
        self._routes: dict[str, dict[str, Route]] = {
            **{endpoint.path: {"POST": partial(generations.answer, endpoint)} for endpoint in ENDPOINTS},
            models.PATH: {"GET": partial(models.list_models, registry)},
            MODEL_PATH: {"GET": partial(models.show_model, registry)},
            "/live": {"GET": health.live},
            "/ready": {"GET": partial(health.ready, registry)},
            "/health": {"GET": partial(health.health, registry, in_flight)},
            "/metrics": {"GET": self._metrics_text},
            "/openapi.json": {"GET": self._openapi},
            **admin.routes(),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = (header(scope, b"x-request-id") or uuid.uuid4().hex.encode())[:128]
        status = 0  # there is no answer yet

        async def recorded_send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = [(b"x-request-id", request_id), *self._access.cors.headers(scope)]
        web = WebRequest(request_id, scope, receive, recorded_send, headers)
        try:
            await self._answer(web)
        except ClientGone:
            self.metrics.cancelled(web.model_label)
            return
        except asyncio.CancelledError:
            if not status:
                await send_error(recorded_send, SHUTTING_DOWN, headers)
            raise
        self.metrics.answered(self._known_path(scope["path"]), status, web.model_label)

    async def _answer(self, web: WebRequest) -> None:
        try:
            await self._route(web)(web)
        except TriptychError as error:
            clear_traceback(error)
            await send_error(web.send, error, web.headers)
        except ClientGone:
            raise
        except Exception as error:
            client_error = as_client_error(error, f"request {shown(web.id)}")
            clear_traceback(error)
            await send_error(web.send, client_error, web.headers)

    def _route(self, web: WebRequest) -> Route:
        method, path = web.method, web.path
        if (web.header(b"upgrade") or b"").lower() == b"websocket":
            raise BadRequest(
                "there is no WebSocket here: answers are streamed by server-sent events over HTTP (`stream`: true)",
                code="websocket_not_supported",
            )
        if self._access.cors.asks(web.scope):
            return self._options
        if path.startswith("/v1/"):
            self._access.check(web.scope)
        if path.startswith(PREFIX):
            self._access.check_admin(web.scope)
        routes = self._routes.get(self._known_path(path))
        if routes is None:
            raise NotFound(f"there is no {shown(path)}; see docs/api.md", code="path_not_found")
        if (route := routes.get("GET" if method == "HEAD" else method)) is None:
            raise MethodNotAllowed.only(tuple(self._methods(path)), f"{shown(path)} does not take {method}")
        return route

    def _methods(self, path: str) -> list[str]:
        """Returns the methods that ``path`` takes: HEAD wherever GET is, and OPTIONS where browsers may ask."""
        taken = self._routes.get(self._known_path(path), {})
        also = ["HEAD"] if "GET" in taken else []
        return [*taken, *also, *(["OPTIONS"] if self._access.cors else [])]

    def _known_path(self, path: str) -> str:
        """Returns the path as a metric's label: one of a bounded set, whatever clients ask for."""
        return path if path in self._routes else MODEL_PATH if path.startswith(f"{models.PATH}/") else "other"

    async def _options(self, web: WebRequest) -> None:
        allowed = self._access.cors.answer(web.scope, self._methods(web.path))
        await web.send({"type": "http.response.start", "status": 204, "headers": [*web.headers, *allowed]})
        await web.send({"type": "http.response.body", "body": b""})

    async def _openapi(self, web: WebRequest) -> None:
        if not self._document:
            # These are imported when somebody asks for the document.
            from triptych.frontend.admin import openapi
            from triptych.frontend.openai.openapi.document import document_of

            self._document = msgspec.json.encode(document_of(self._config, openapi.described()))
        await send_json(web.send, self._document, web.headers)

    async def _metrics_text(self, web: WebRequest) -> None:
        kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        instances = [instance for model in self._registry.models.values() for instance in model.instances]
        workers = families_of(await self._dispatcher.worker_metrics(instances))
        await send_whole(web.send, 200, self.metrics.text(workers), [kind, *web.headers])
