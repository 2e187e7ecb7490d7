"""Triptych's own flags of the vLLM engine; whatever is not here goes to vLLM as it is."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class VllmFlags(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this worker's engine is joined to others."""

    ec_connector_backend: Annotated[
        str, Meta(description="vLLM EC connector that carries embeddings from `e` to the workers that prefill.")
    ] = "ECExampleConnector"
    ec_storage_path: Annotated[
        str, Meta(description="Folder shared by the EC connector's producers and consumers; empty: no EC connector.")
    ] = ""
    ec_extra_config: Annotated[str, Meta(description="JSON object: more of the EC connector's configuration.")] = ""
    kv_events: Annotated[
        bool, Meta(description="Tell frontends what the KV cache holds, for routing (spans that prefill).")
    ] = True
    nixl_side_channel_host: Annotated[
        str, Meta(description="Address at which this worker's NIXL agent is found by decode workers.")
    ] = "127.0.0.1"
    nixl_side_channel_port: Annotated[
        int, Meta(ge=0, le=65535, description="First port of the NIXL side channel; 0 takes free ones.")
    ] = 0
    grammar_timeout_s: Annotated[
        float, Meta(gt=0, description="Time limit for compiling the grammar of a `response_format` on trial.")
    ] = 4.0
    grammar_trials: Annotated[int, Meta(gt=0, description="Most grammars that are compiled on trial at once.")] = 2
    grammar_threads: Annotated[
        int, Meta(ge=0, description="Threads that compile one of them; 0: half of the cores, at most 8.")
    ] = 0
    grammar_memory_mib: Annotated[
        int, Meta(ge=64, description="Most memory that compiling one of them may take, in MiB.")
    ] = 1024
    grammar_max_step_s: Annotated[
        float,
        Meta(gt=0, description="Most processor time that a token may take under a grammar; costlier ones are refused."),
    ] = 0.1
    grammar_step_budget_s: Annotated[
        float,
        Meta(
            gt=0,
            description="Most processor time that a token may take under the grammars of all running requests "
            "together, by which any other stream is held up; more requests wait, then get 503.",
        ),
    ] = 0.25
