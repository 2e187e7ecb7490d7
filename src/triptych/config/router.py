"""Configuration of how a frontend chooses workers."""

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
    """What decides among workers that could all take a request."""

    router_policy: Annotated[
        Literal["kv", "round-robin", "random", "least-loaded", "power-of-two", "direct"],
        Meta(
            description="Who of those that prefill takes a request: `kv` (the least work left after what each holds of "
            "the prompt), `round-robin`, `random`, `least-loaded`, `power-of-two`, or `direct`: the one "
            "that the request's header `x-triptych-instance` names."
        ),
    ] = "kv"
    router_prefill_weight: Annotated[
        float,
        Meta(
            ge=0,
            description="Cost of a token that waits at a worker to be prefilled; one that the worker must compute for "
            "the request itself costs 1.",
        ),
    ] = 0.25
    router_decode_weight: Annotated[
        float, Meta(ge=0, description="Cost of a token in the KV caches of requests that a worker decodes.")
    ] = 0.0125
    router_host_credit: Annotated[
        float, Meta(ge=0, le=1, description="What a token held in a worker's host memory saves of its prefill.")
    ] = 0.8
    router_disk_credit: Annotated[
        float, Meta(ge=0, le=1, description="What a token held on a worker's disk saves of its prefill.")
    ] = 0.5
    router_temperature: Annotated[
        float,
        Meta(
            ge=0, description="0 takes the cheapest worker; above, workers near it are drawn too, which spreads ties."
        ),
    ] = 0.0
    router_sessions: Annotated[
        bool,
        Meta(
            description="Requests of one session (header `x-session-id`, else the field `session_id` or `user`) go to "
            "one worker, unless "
            "it has a quarter more to do than the average."
        ),
    ] = False
    router_remember_s: Annotated[
        float,
        Meta(gt=0, description="How long a worker that reports no KV events is thought to hold what it was sent."),
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
