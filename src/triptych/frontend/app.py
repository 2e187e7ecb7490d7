"""The ASGI application: routes, errors and what every generation passes on its way."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from triptych.aio.memory import clear_traceback
from triptych.aio.trimming import Trimmer
from triptych.cache.memory_budget import MemoryBudget, Reservation
from triptych.config.serve import FrontendConfig
from triptych.contracts.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    TriptychError,
    Unavailable,
)
from triptych.contracts.media import Data
from triptych.contracts.shown import shown
from triptych.frontend.fleet.catalog import Catalog, Model
from triptych.frontend.fleet.model_view import card_of, health_of
from triptych.frontend.http.access import Access
from triptych.frontend.http.admission import Admission, Lane
from triptych.frontend.http.asgi import (
    ClientGone,
    Headers,
    Receive,
    Scope,
    Send,
    header,
    send_error,
    send_json,
    send_whole,
)
from triptych.frontend.http.body import read_body
from triptych.frontend.http.client_watch import ClientWatch
from triptych.frontend.http.content_type import check_json
from triptych.frontend.http.failures import SHUTTING_DOWN, as_told
from triptych.frontend.http.in_flight import InFlight
from triptych.frontend.openai.answers import Answer
from triptych.frontend.openai.body.large_body import parse_large, parse_quick
from triptych.frontend.openai.body.weight import weight_of
from triptych.frontend.openai.generation import Generation, Job
from triptych.frontend.openai.limits import check_counts
from triptych.frontend.openai.requests import Builder, wants_usage
from triptych.frontend.openai.schema import ChatRequest, CompletionRequest, RequestDecoder, parse_chat, parse_completion
from triptych.observability.metrics import FrontendMetrics, MediaCounts
from triptych.observability.workers import text_of
from triptych.processor.processor import Processor
from triptych.router.routing import INSTANCE_HEADER, SESSION_HEADER, RoutingHint
from triptych.stages.compose import RETRY_AFTER_S
from triptych.stages.dispatch import Dispatcher

log = logging.getLogger("triptych.frontend")

IGNORED_HEADER = b"x-triptych-ignored"
"""Names the fields of a request that nobody knows."""
MODEL_PATH = "/v1/models/{id}"
"""Stands for the path of every model."""
encode = msgspec.json.encode
R = TypeVar("R", ChatRequest, CompletionRequest)
Route = Callable[[Scope, Receive, Send, Headers], Awaitable[None]]


class App:
    """See the module. One instance serves one frontend process."""

    def __init__(
        self,
        config: FrontendConfig,
        catalog: Catalog,
        builder: Builder,
        dispatcher: Dispatcher,
        media: MediaCounts | None = None,
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._builder = builder
        self._dispatcher = dispatcher
        self._in_flight = InFlight(config.max_in_flight)
        self._admission = Admission(config.max_running, config.max_waiting, config.max_wait_s)
        self.metrics = FrontendMetrics(lambda: self._in_flight.requests, media)
        self._held = MemoryBudget(config.max_held_bytes, Trimmer().soon)
        self.metrics.also(self._admission.metrics)
        self.metrics.also(self._held.metrics)
        self.metrics.also(self._in_flight.metrics)
        self._access = Access(config)
        self._routes: dict[str, dict[str, Route]] = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._completions},
            "/v1/models": {"GET": self._models},
            MODEL_PATH: {"GET": self._model},
            "/live": {"GET": self._live},
            "/ready": {"GET": self._ready},
            "/health": {"GET": self._health},
            "/metrics": {"GET": self._metrics_text},
            "/openapi.json": {"GET": self._openapi},
        }
        self._document = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = header(scope, b"x-request-id") or uuid.uuid4().hex.encode()
        headers: Headers = [(b"x-request-id", request_id[:128]), *self._access.cors.headers(scope)]
        status = 0  # nothing was answered yet

        async def recorded_send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, recorded_send, headers)
        except ClientGone:
            self.metrics.cancelled()
            return
        except asyncio.CancelledError:
            if not status:
                await send_error(recorded_send, SHUTTING_DOWN, headers)
            raise
        self.metrics.answered(self._known_path(scope["path"]), status)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        try:
            await self._route(scope)(scope, receive, send, headers)
        except TriptychError as error:
            clear_traceback(error)
            await send_error(send, error, headers)
        except ClientGone:
            raise
        except Exception as error:
            told = as_told(error, f"request {shown(headers[0][1])}")
            clear_traceback(error)
            await send_error(send, told, headers)

    def _route(self, scope: Scope) -> Route:
        method, path = scope["method"], scope["path"]
        if (header(scope, b"upgrade") or b"").lower() == b"websocket":
            raise BadRequest(
                "there is no WebSocket here: answers are streamed by server-sent events over HTTP (`stream`: true)",
                code="websocket_not_supported",
            )
        if self._access.cors.asks(scope):
            return self._options
        if path.startswith("/v1/"):
            self._access.check(scope)
        routes = self._routes.get(self._known_path(path))
        if routes is None:
            raise NotFound(f"there is no {shown(path)}; see docs/api.md", code="path_not_found")
        if (route := routes.get("GET" if method == "HEAD" else method)) is None:
            raise MethodNotAllowed.only(tuple(self._methods(path)), f"{shown(path)} does not take {method}")
        return route

    def _methods(self, path: str) -> list[str]:
        """The methods that ``path`` takes: HEAD wherever GET is, and OPTIONS where browsers may ask."""
        taken = self._routes.get(self._known_path(path), {})
        also = ["HEAD"] if "GET" in taken else []
        return [*taken, *also, *(["OPTIONS"] if self._access.cors else [])]

    def _known_path(self, path: str) -> str:
        """The path as a metric's label: a bounded set, whatever clients ask for."""
        return path if path in self._routes else MODEL_PATH if path.startswith("/v1/models/") else "other"

    # Generation.

    async def _chat(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        await self._generation(parse_chat, self._builder.chat, scope, receive, send, headers)

    async def _completions(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        await self._generation(parse_completion, self._builder.completion, scope, receive, send, headers)

    async def _generation(
        self,
        parse: RequestDecoder[R],
        build: Callable[[R, Processor, Reservation], Awaitable[tuple[list[Job], Answer]]],
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Headers,
    ) -> None:
        with self._in_flight.request() as places, self._held.request() as holder:
            request, weight = await self._parsed(await self._body(scope, receive, holder), parse)
            holder.add(weight)
            self._tell_ignored(request, headers)
            places.take(1, "model")  # not before: a slow body must not hold a place
            async with ClientWatch(receive):
                model, processor = self._catalog.get(request.model)
                jobs, answer = await build(request, processor, holder)
                places.take(len(jobs), _param_of_many(request))
                wish = _wish(scope, request)
                for job in jobs:
                    job.prompt.routed.wish = wish
                await self._generate(model, request, jobs, answer, holder, scope, send, headers)

    async def _body(self, scope: Scope, receive: Receive, holder: Reservation) -> Data:
        check_json(scope)
        body = await read_body(scope, receive, self._config.max_body_bytes, holder, self._config)
        if not body:
            raise BadRequest("the body is empty; it must be a JSON object", code="invalid_json")
        return body

    async def _parsed(self, body: Data, parse: RequestDecoder[R]) -> tuple[R, int]:
        """The request, whose counts are within their limits, and the memory that it takes."""
        request = parse_quick(body, parse)
        if request is None:
            return await self._builder.work.bodies.run(partial(_large, body, parse, self._config))
        check_counts(request, self._config)
        return request, weight_of(request)

    def _tell_ignored(self, request: R, headers: Headers) -> None:
        """Name the fields that nobody knows in ``headers``. Raises BadRequest where they are not to be ignored."""
        if (ignored := request.ignored) is None:
            return
        self.metrics.ignored(ignored.count)
        headers.append((IGNORED_HEADER, ignored.header()))
        if self._config.strict_fields:
            path = ignored.paths()[0]
            reason = "this field is not known, and this server ignores none (--strict-fields)"
            raise BadRequest(f"{path}: {reason}", param=path, code="unknown_parameter")

    async def _generate(
        self,
        model: Model,
        request: ChatRequest | CompletionRequest,
        jobs: list[Job],
        answer: Answer,
        holder: Reservation,
        scope: Scope,
        send: Send,
        headers: Headers,
    ) -> None:
        generation = Generation(
            jobs,
            answer,
            lambda: model.instances,
            self._dispatcher,
            self.metrics,
            holder,
            include_usage=wants_usage(request),
            with_timing=header(scope, b"x-triptych-timing") == b"1",
            plan_header=self._config.plan_header,
            tenant=self._access.tenant(scope),
        )
        lane: Lane = "media" if any(job.request.media for job in jobs) else "text"
        with self._admission.party(lane, len(jobs), _param_of_many(request)) as generation.places:
            await (generation.stream if request.stream else generation.whole)(send, headers)

    # Everything else.

    async def _options(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        said = self._access.cors.answer(scope, self._methods(scope["path"]))
        await send({"type": "http.response.start", "status": 204, "headers": [*headers, *said]})
        await send({"type": "http.response.body", "body": b""})

    async def _models(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        cards = [card_of(model) for _, model in sorted(self._catalog.models.items()) if model.instances]
        await send_json(send, encode({"object": "list", "data": cards}), headers)

    async def _model(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        name = scope["path"].removeprefix("/v1/models/")
        await send_json(send, encode(card_of(self._catalog.find(name))), headers)

    async def _live(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        await send_json(send, b'{"status":"live"}', headers)

    async def _ready(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        if not self._catalog.ready:
            raise Unavailable(self._why_not_ready(), code="not_ready", retry_after_s=RETRY_AFTER_S)
        await send_json(send, b'{"status":"ready"}', headers)

    def _why_not_ready(self) -> str:
        if not self._catalog.models:
            return f"no worker is alive yet{self._catalog.looked_in}"
        problems = "; ".join(
            f"{name}: {model.problem or model.gap('pd')}" for name, model in sorted(self._catalog.models.items())
        )
        return problems + self._catalog.looked_in

    async def _health(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        models = {name: health_of(model) for name, model in sorted(self._catalog.models.items())}
        status = "ready" if self._catalog.ready else "not ready"
        body = {
            "status": status,
            "requests_in_flight": self._in_flight.requests,
            "generations_in_flight": self._in_flight.generations,
            "models": models,
        }
        await send_json(send, encode(body), headers)

    async def _openapi(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        if not self._document:
            from triptych.frontend.openai.openapi.document import document_of  # only those pay for it who ask for it

            self._document = encode(document_of(self._config))
        await send_json(send, self._document, headers)

    async def _metrics_text(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        instances = [one for model in self._catalog.models.values() for one in model.instances]
        workers = text_of(await self._dispatcher.worker_metrics(instances))
        await send_whole(send, 200, self.metrics.text() + workers, [kind, *headers])


def _large(body: Data, parse: RequestDecoder[R], config: FrontendConfig) -> tuple[R, int]:
    request = parse_large(body, parse, config)
    check_counts(request, config)  # its long texts among them
    return request, weight_of(request)


def _param_of_many(request: ChatRequest | CompletionRequest) -> str:
    """The field that makes a request many generations."""
    return "n" if (request.n or 1) > 1 or isinstance(request, ChatRequest) else "prompt"


def _wish(scope: Scope, request: ChatRequest | CompletionRequest) -> RoutingHint:
    session = header(scope, SESSION_HEADER.encode()) or (request.session_id or request.user or "").encode()
    instance = header(scope, INSTANCE_HEADER.encode()) or b""
    return RoutingHint(session.decode(errors="replace"), instance.decode(errors="replace"))
