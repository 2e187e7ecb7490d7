"""Configures the limits on JSON schemas, which an engine has to compile."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from triptych.config.http import HttpConfig

MAX_DEPTH = 64
"""Engines refuse schemas that are nested more deeply."""


class SchemaLimits(HttpConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits that can be counted in a schema or a pattern before an engine sees it."""

    max_schema_bytes: Annotated[int, Meta(gt=0, description="Maximum bytes of a JSON schema in `response_format`.")] = (
        128 << 10
    )
    max_schema_depth: Annotated[
        int,
        Meta(
            gt=0, le=MAX_DEPTH, description="Maximum number of objects and arrays of a JSON schema within each other."
        ),
    ] = MAX_DEPTH
    max_schema_nodes: Annotated[
        int, Meta(gt=0, description="Maximum number of objects and arrays in a JSON schema.")
    ] = 4096
    max_schema_enum_values: Annotated[
        int, Meta(gt=0, description="Maximum number of values of all `enum`s of a JSON schema together.")
    ] = 4096
    max_pattern_size: Annotated[
        int,
        Meta(
            gt=0,
            description="Maximum characters that all patterns of a JSON schema match together, counted with every "
            "repetition written out: `([a-z]{1,20} ){3}` is 63.",
        ),
    ] = 10_000
    max_schema_repeats: Annotated[
        int,
        Meta(
            gt=0,
            description="Largest number in a repetition of a pattern, such as 20 in `[a-z]{1,20}`, and largest "
            "`minLength` and `minItems`.",
        ),
    ] = 1000
