"""Configures how a frontend chooses workers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Weights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights of a worker's cost (``router.policy``)."""

    prefill_weight: Annotated[float, Meta(ge=0)] = 0.25
    decode_weight: Annotated[float, Meta(ge=0)] = 0.0125
    host_credit: Annotated[float, Meta(ge=0, le=1)] = 0.8
    disk_credit: Annotated[float, Meta(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    """0 takes the cheapest; above, workers are drawn with weights ``exp(-cost / (temperature * prompt))``."""


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings that decide among workers that could all take a request."""

    router_policy: Annotated[
        Literal["kv", "round-robin", "random", "least-loaded", "power-of-two", "direct"],
        Meta(
            description="How a worker that prefills is chosen: `kv` (the least work left, given what each worker's "
            "cache holds of the prompt), `round-robin`, `random`, `least-loaded`, `power-of-two`, or "
            "`direct` (the worker that the request's header `x-triptych-instance` names)."
        ),
    ] = "kv"
    router_prefill_weight: Annotated[
        float,
        Meta(
            ge=0,
            description="Cost of a token that waits at a worker to be prefilled, where a token that the worker must "
            "compute for the request itself costs 1.",
        ),
    ] = 0.25
    router_decode_weight: Annotated[
        float, Meta(ge=0, description="Cost of a token in the KV caches of the requests that a worker decodes.")
    ] = 0.0125
    router_host_credit: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of a token's prefill that is saved if the token is in a worker's host memory.",
        ),
    ] = 0.8
    router_disk_credit: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of a token's prefill that is saved if the token is on a worker's disk."),
    ] = 0.5
    router_temperature: Annotated[
        float,
        Meta(
            ge=0,
            description="0: the cheapest worker is chosen. Above 0, workers with a cost near it are drawn as well, "
            "which spreads equal requests.",
        ),
    ] = 0.0
    router_sessions: Annotated[
        bool,
        Meta(
            description="Send the requests of one session (header `x-session-id`, else the field `session_id` or "
            "`user`) to one worker, unless that has more than 1.25 times the average work."
        ),
    ] = False
    router_remember_s: Annotated[
        float,
        Meta(gt=0, description="How long a worker that reports no KV events is assumed to hold what it was sent."),
    ] = 120.0

    @property
    def weights(self) -> Weights:
        return Weights(
            prefill_weight=self.router_prefill_weight,
            decode_weight=self.router_decode_weight,
            host_credit=self.router_host_credit,
            disk_credit=self.router_disk_credit,
            temperature=self.router_temperature,
        )
