"""Configures ``triptych verify``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from triptych.config.serve import DEFAULT_PORT

CASES = ("text", "one", "two", "four", "sizes", "interleaved", "repeated", "video", "sound")
"""The kinds of cases; ``verify/cases.py`` makes them."""


class Dtype(StrEnum):
    """Number formats of weights, by torch's names."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class VerifyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The check of a deployment against transformers."""

    url: Annotated[str, Meta(pattern="^https?://", description="Address of the deployment.")] = (
        f"http://127.0.0.1:{DEFAULT_PORT}"
    )
    checkpoint: Annotated[
        str | None,
        Meta(
            description="Folder of the served checkpoint, or `demo` for the shipped demo model (default: `demo`, if a "
            "model of that name is asked)."
        ),
    ] = None
    model: Annotated[
        str | None, Meta(description="Model to ask, by the name that clients use (default: the only one served).")
    ] = None
    max_tokens: Annotated[int, Meta(gt=0, description="Maximum number of tokens of each answer.")] = 16
    concurrency: Annotated[int, Meta(gt=0, description="Number of requests in flight in the phase `at once`.")] = 8
    cases: Annotated[
        str | None,
        Meta(description=f"What to ask, separated by commas: {', '.join(CASES)} (default: all that the model takes)."),
    ] = None
    dtype: Annotated[Dtype, Meta(description="Number format of the reference: float32, bfloat16 or float16.")] = (
        Dtype.FLOAT32
    )
    device: Annotated[str, Meta(description="Device of the reference, as torch names it: cpu, cuda, cuda:1 ...")] = (
        "cpu"
    )
    seed: Annotated[
        int | None, Meta(description="Seed of the media (default: new media in each run, which no cache holds).")
    ] = None
    timeout_s: Annotated[float, Meta(gt=0, description="Time limit for each answer.")] = 300.0
    json: Annotated[str | None, Meta(description="File to which the report is also written, as JSON.")] = None
    api_key: Annotated[
        str | None, Meta(description="Key to send as a bearer token (default: TRIPTYCH_API_KEY, else none).")
    ] = None
