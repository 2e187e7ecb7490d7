"""Answers ``POST /admin/...``: has the workers of a model carry out an action, and returns the outcome at each."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from triptych.cache.memory_budget import MemoryBudget
from triptych.config.serve import FrontendConfig
from triptych.contracts.admin import ACTIONS, Action
from triptych.contracts.errors import TooManyRequests, TriptychError
from triptych.contracts.shown import shown
from triptych.frontend.admin.fan_out import FanOut, Outcome
from triptych.frontend.admin.request import AdminRequest, decode
from triptych.frontend.admin.targets import targets_of
from triptych.frontend.fleet.model_registry import ModelRegistry
from triptych.frontend.http.asgi import error_detail, error_headers, send_json, send_whole
from triptych.frontend.http.body import read_body
from triptych.frontend.http.content_type import check_json
from triptych.frontend.http.web_request import WebRequest

log = logging.getLogger("triptych.admin")

PREFIX = "/admin/"
MAX_BODY_BYTES = 64 << 10
MAX_AT_ONCE = 8
"""The limit on administrative requests at a time; more get 429."""


class Admin:
    """The administrative routes of one frontend."""

    def __init__(self, config: FrontendConfig, registry: ModelRegistry, fan_out: FanOut) -> None:
        self._config = config
        self._registry = registry
        self._fan_out = fan_out
        self._bodies = MemoryBudget(MAX_AT_ONCE * MAX_BODY_BYTES)
        self._running = 0

    def routes(self) -> dict[str, dict[str, Callable[[WebRequest], Awaitable[None]]]]:
        """Returns the route of each action by its path and method."""
        return {path_of(action): {"POST": partial(self._answer, action)} for action in ACTIONS.values()}

    async def _answer(self, action: Action[Any, Any], web: WebRequest) -> None:
        if self._running >= MAX_AT_ONCE:
            raise TooManyRequests(f"{MAX_AT_ONCE} administrative requests are under way", code="too_many_requests")
        self._running += 1
        try:
            request = decode(action, await self._body(web))
            model = self._registry.find(request.target.model)
            instances = targets_of(action, request.target, model.instances)
            outcomes = await self._carry_out(action, request, instances)
        finally:
            self._running -= 1
        await self._send(action, request, outcomes, web)

    async def _body(self, web: WebRequest) -> Any:
        check_json(web.scope)
        with self._bodies.request() as reservation:
            return await read_body(web.scope, web.receive, MAX_BODY_BYTES, reservation, self._config)

    async def _carry_out(
        self, action: Action[Any, Any], request: AdminRequest, instances: Sequence[Any]
    ) -> list[Outcome]:
        outcomes = await self._fan_out.run(action, request.params, instances)
        if request.target.all_or_nothing and any(outcome.failed for outcome in outcomes):
            outcomes = await self._fan_out.undo(ACTIONS[action.undo], request.params, outcomes)
        for outcome in outcomes:
            why = f": {outcome.error.message}" if outcome.error is not None else ""
            log.info(
                "%s of %s at %s: %s%s",
                action.name,
                shown(request.target.model),
                outcome.instance.name,
                outcome.status,
                why,
            )
        return outcomes

    async def _send(
        self, action: Action[Any, Any], request: AdminRequest, outcomes: list[Outcome], web: WebRequest
    ) -> None:
        summary = {
            "action": action.name,
            "model": request.target.model,
            "instances": [_shown(outcome) for outcome in outcomes],
        }
        error = _whole_error(action, outcomes)
        if error is None:
            await send_json(web.send, msgspec.json.encode(summary), web.headers)
            return
        body = msgspec.json.encode({"error": error_detail(error), **summary})
        await send_whole(web.send, error.status, body, [*error_headers(error), *web.headers])


def path_of(action: Action[Any, Any]) -> str:
    return PREFIX + action.name.replace("_", "-")


def _whole_error(action: Action[Any, Any], outcomes: list[Outcome]) -> TriptychError | None:
    """Returns the request's error: it has the kind of the first failure, and names every failed instance."""
    failed = [(outcome.instance.name, outcome.error) for outcome in outcomes if outcome.error is not None]
    if not failed:
        return None
    causes = "; ".join(f"{name}: {error.message}" for name, error in failed)
    _, first = failed[0]
    message = f"{action.name} failed at {len(failed)} of {len(outcomes)} workers: {causes}"
    return type(first)(message, code=first.code, retry_after_s=first.retry_after_s)


def _shown(outcome: Outcome) -> dict[str, Any]:
    """Returns one instance's part of the answer."""
    instance = {"name": outcome.instance.name, "id": outcome.instance.id, "status": outcome.status}
    if outcome.result is not None:
        return {**instance, "result": outcome.result}
    return instance if outcome.error is None else {**instance, "error": error_detail(outcome.error)}
