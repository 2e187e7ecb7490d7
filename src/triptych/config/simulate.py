"""What ``triptych simulate`` is told."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class SimulateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trace over workers in virtual time."""

    workers: Annotated[int, Meta(gt=0, le=4096, description="Workers in all.")] = 8
    policy: Annotated[
        str,
        Meta(
            description="How workers are chosen: kv, round-robin, random, least-loaded, power-of-two; several by "
            "commas or by giving the flag again."
        ),
    ] = "kv,round-robin"
    mode: Annotated[
        str, Meta(description="Which stages are apart: EPD, E/PD, EP/D, E/P/D; several as with --policy.")
    ] = "EPD"
    split: Annotated[
        str | None,
        Meta(description="Workers of each span, as `e=1,p=4,d=3`, for one mode (default: by the work that each has)."),
    ] = None
    speed: Annotated[
        str, Meta(description="How many times as fast as the trace requests arrive; several as with --policy.")
    ] = "1"
    find_saturation: Annotated[
        str | None,
        Meta(
            description="A policy: instead of --speed, run at 0.8, 0.9, 1 and 1.1 times the highest speed at which so "
            "many requests meet both targets with it as --saturation-share says."
        ),
    ] = None
    saturation_share: Annotated[float, Meta(gt=0, lt=1, description="See --find-saturation.")] = 0.9
    profile: Annotated[str, Meta(description="How fast an engine is: llama-8b-h100 or demo-cpu.")] = "llama-8b-h100"
    ttft_target_s: Annotated[float, Meta(gt=0, description="TTFT that a request of the goodput does not exceed.")] = 5.0
    tpot_target_ms: Annotated[
        float, Meta(gt=0, description="Mean time of a token after the first that it does not exceed.")
    ] = 100.0
    prefill_weight: Annotated[float, Meta(ge=0, description="Of the policy kv: see docs/routing.md.")] = 0.25
    decode_weight: Annotated[float, Meta(ge=0, description="Of the policy kv: see docs/routing.md.")] = 0.0125
    event_delay_s: Annotated[
        float, Meta(ge=0, description="Until the router knows of a change in a worker's cache.")
    ] = 0.01
    limit: Annotated[int, Meta(ge=0, description="Most requests of the trace, from its start; 0: all.")] = 0
    duration_s: Annotated[
        float, Meta(gt=0, description="Of a trace that is drawn from distributions (ServeGen), before --speed.")
    ] = 1200.0
    repeated_media: Annotated[
        float, Meta(ge=0, le=1, description="Share of media that came before, in a trace that does not tell.")
    ] = 0.0
    seed: Annotated[int, Meta(ge=0, description="Of whatever is drawn.")] = 0
    quiet: Annotated[
        bool, Meta(description="Say nothing of how far it has come, which else is told where a terminal reads.")
    ] = False
    out: Annotated[
        str | None, Meta(description="Folder for the results as JSON and as a plot (default: none is written).")
    ] = None
