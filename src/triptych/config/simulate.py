"""Configures ``triptych simulate``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class SimulateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A replay of a trace on workers in virtual time."""

    workers: Annotated[int, Meta(gt=0, le=4096, description="Number of workers.")] = 8
    policy: Annotated[
        str,
        Meta(
            description="How workers are chosen: kv, round-robin, random, least-loaded or power-of-two; several "
            "separated by commas, or by repeating the flag."
        ),
    ] = "kv,round-robin"
    mode: Annotated[
        str, Meta(description="How the stages are split: EPD, E/PD, EP/D or E/P/D; several as with --policy.")
    ] = "EPD"
    split: Annotated[
        str | None,
        Meta(
            description="Number of workers of each span, as `e=1,p=4,d=3`, for one mode (default: by the work of each "
            "span)."
        ),
    ] = None
    speed: Annotated[
        str, Meta(description="Speed of the arrivals, as a multiple of the trace's; several as with --policy.")
    ] = "1"
    find_saturation: Annotated[
        str | None,
        Meta(
            description="A policy. Instead of --speed, run at 0.8, 0.9, 1 and 1.1 times the highest speed at which, "
            "with this policy, --saturation-share of the requests meet both targets."
        ),
    ] = None
    saturation_share: Annotated[float, Meta(gt=0, lt=1, description="Share of requests for --find-saturation.")] = 0.9
    profile: Annotated[str, Meta(description="Speed of the engines: llama-8b-h100 or demo-cpu.")] = "llama-8b-h100"
    ttft_target_s: Annotated[
        float, Meta(gt=0, description="Highest TTFT of a request that counts for the goodput.")
    ] = 5.0
    tpot_target_ms: Annotated[
        float,
        Meta(
            gt=0,
            description="Highest mean time per token after the first one, of a request that counts for the goodput.",
        ),
    ] = 100.0
    prefill_weight: Annotated[float, Meta(ge=0, description="Weight of the policy kv; see docs/routing.md.")] = 0.25
    decode_weight: Annotated[float, Meta(ge=0, description="Weight of the policy kv; see docs/routing.md.")] = 0.0125
    event_delay_s: Annotated[
        float, Meta(ge=0, description="Time until the router learns of a change in a worker's cache.")
    ] = 0.01
    limit: Annotated[
        int, Meta(ge=0, description="Maximum number of requests, from the start of the trace; 0: all.")
    ] = 0
    duration_s: Annotated[
        float, Meta(gt=0, description="Length of a trace that is drawn from distributions (ServeGen), before --speed.")
    ] = 1200.0
    repeated_media: Annotated[
        float, Meta(ge=0, le=1, description="Share of media that occurred before, in a trace that does not say so.")
    ] = 0.0
    seed: Annotated[int, Meta(ge=0, description="Seed of everything that is drawn.")] = 0
    quiet: Annotated[bool, Meta(description="Print no progress. Otherwise it is printed to a terminal.")] = False
    out: Annotated[
        str | None, Meta(description="Folder for the results as JSON and as a plot (default: none is written).")
    ] = None
