"""Answers requests that generate text: body, limits, model, prompt, admission, generation.

This is the part that all endpoints have in common; an ``Endpoint`` defines the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from triptych.aio.reclaim import Trimmer
from triptych.cache.memory_budget import MemoryBudget, Reservation
from triptych.config.serve import FrontendConfig
from triptych.contracts.errors import BadRequest
from triptych.contracts.media import Data
from triptych.contracts.metric import Metric
from triptych.frontend.fleet.model import Model
from triptych.frontend.fleet.model_registry import ModelRegistry
from triptych.frontend.http.access import Access
from triptych.frontend.http.admission import Admission, Lane
from triptych.frontend.http.asgi import Headers
from triptych.frontend.http.body import read_body
from triptych.frontend.http.client_watch import ClientWatch
from triptych.frontend.http.content_type import check_json
from triptych.frontend.http.in_flight import InFlight
from triptych.frontend.http.web_request import WebRequest
from triptych.frontend.openai.answers import Answer
from triptych.frontend.openai.body.large_body import parse_large, parse_quick
from triptych.frontend.openai.decoder import RequestDecoder
from triptych.frontend.openai.endpoint import Endpoint
from triptych.frontend.openai.generation import Generation, Job
from triptych.frontend.openai.request import GenerationFields
from triptych.frontend.openai.resources import Resources
from triptych.observability.metrics import FrontendMetrics
from triptych.router.routing import INSTANCE_HEADER, SESSION_HEADER, RoutingHint
from triptych.stages.dispatch import Dispatcher

IGNORED_HEADER = b"x-triptych-ignored"
"""The header that names the unknown fields of a request."""
T = TypeVar("T", bound=GenerationFields)


class Generations:
    """Answers requests that generate text. One for each frontend."""

    def __init__(
        self,
        config: FrontendConfig,
        registry: ModelRegistry,
        resources: Resources,
        dispatcher: Dispatcher,
        access: Access,
        metrics: FrontendMetrics,
        in_flight: InFlight,
    ) -> None:
        self._config = config
        self._registry = registry
        self._resources = resources
        self._dispatcher = dispatcher
        self._access = access
        self._metrics = metrics
        self._in_flight = in_flight
        self._admission = Admission(config.max_running, config.max_waiting, config.max_wait_s)
        self._budget = MemoryBudget(config.max_held_bytes, Trimmer().soon)

    @property
    def metrics(self) -> tuple[Callable[[], Iterable[Metric]], ...]:
        """Returns the metrics of the limits on generations."""
        return self._admission.metrics, self._budget.metrics, self._in_flight.metrics

    async def answer(self, endpoint: Endpoint[T], web: WebRequest) -> None:
        """Answers one request. Raises TriptychError and ClientGone, as long as nothing was sent."""
        with self._in_flight.request() as counted, self._budget.request() as reservation:
            request, weight = await self._parsed(await self._body(web, reservation), endpoint.parse)
            reservation.add(weight)
            self._name_ignored(request, web.headers)
            counted.set_generations(1, "model")  # only now, because a slow body must not count as a generation
            async with ClientWatch(web.receive):
                web.model_label = self._metrics.label_of(request.model, known=self._registry.is_known(request.model))
                model, processor = self._registry.get(request.model)
                jobs, answer = await endpoint.build(self._resources, request, processor, reservation)
                request.drop_prompt()
                counted.set_generations(len(jobs), request.field_of_many)
                hint = _routing_hint(web, request)
                for job in jobs:
                    job.prompt.keys.hint = hint
                await self._generate(model, request, jobs, answer, reservation, web)

    async def _body(self, web: WebRequest, reservation: Reservation) -> Data:
        check_json(web.scope)
        body = await read_body(
            web.scope, web.receive, self._config.max_body_bytes, reservation, self._config, "--max-body-bytes"
        )
        if not body:
            raise BadRequest("the body is empty; it must be a JSON object", code="invalid_json")
        return body

    async def _parsed(self, body: Data, parse: RequestDecoder[T]) -> tuple[T, int]:
        """Returns the request, whose counts are within their limits, and the bytes that it takes in memory."""
        request = parse_quick(body, parse)
        if request is None:
            return await self._resources.work.bodies.run(partial(_large, body, parse, self._config))
        request.check_counts(self._config)
        return request, request.weight()

    def _name_ignored(self, request: GenerationFields, headers: Headers) -> None:
        """Names the unknown fields in ``headers``. Raises BadRequest under ``--strict-fields``."""
        if (ignored := request.ignored) is None:
            return
        self._metrics.ignored(ignored.count)
        headers.append((IGNORED_HEADER, ignored.header()))
        if self._config.strict_fields:
            path = ignored.paths()[0]
            reason = "this field is not known, and this server ignores none (--strict-fields)"
            raise BadRequest(f"{path}: {reason}", param=path, code="unknown_parameter")

    async def _generate(
        self,
        model: Model,
        request: GenerationFields,
        jobs: list[Job],
        answer: Answer,
        reservation: Reservation,
        web: WebRequest,
    ) -> None:
        generation = Generation(
            jobs,
            answer,
            lambda: model.instances,
            self._dispatcher,
            self._metrics.of_model(model.card.name),
            reservation,
            include_usage=request.wants_usage,
            with_timing=web.header(b"x-triptych-timing") == b"1",
            plan_header=self._config.plan_header,
            tenant=self._access.tenant(web.scope),
        )
        lane: Lane = "media" if any(job.request.media for job in jobs) else "text"
        with self._admission.request(lane, len(jobs), request.field_of_many) as generation.slots:
            await (generation.stream if request.stream else generation.whole)(web.send, web.headers)


def _large(body: Data, parse: RequestDecoder[T], config: FrontendConfig) -> tuple[T, int]:
    request = parse_large(body, parse, config)
    request.check_counts(config)  # including its long texts
    return request, request.weight()


def _routing_hint(web: WebRequest, request: GenerationFields) -> RoutingHint:
    session = web.header(SESSION_HEADER.encode()) or (request.session_id or request.user or "").encode()
    instance = web.header(INSTANCE_HEADER.encode()) or b""
    return RoutingHint(session.decode(errors="replace"), instance.decode(errors="replace"))
