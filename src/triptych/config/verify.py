"""What ``triptych verify`` is told."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from triptych.config.serve import DEFAULT_PORT

CASES = ("text", "one", "two", "four", "sizes", "interleaved", "repeated", "video", "sound")
"""What can be asked; ``verify/cases.py`` makes them."""


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
            description="Folder of the checkpoint that is served, or `demo` for the shipped demo model "
            "(default: `demo`, where a model of that name is asked)."
        ),
    ] = None
    model: Annotated[
        str | None, Meta(description="Model to ask, by the name that clients use (default: the only one served).")
    ] = None
    max_tokens: Annotated[int, Meta(gt=0, description="Most tokens of each answer.")] = 16
    concurrency: Annotated[int, Meta(gt=0, description="Requests in flight in the phase `at once`.")] = 8
    cases: Annotated[
        str | None,
        Meta(description=f"What to ask, separated by commas: {', '.join(CASES)} (default: all that the model takes)."),
    ] = None
    dtype: Annotated[Dtype, Meta(description="Number format of the reference: float32, bfloat16 or float16.")] = (
        Dtype.FLOAT32
    )
    device: Annotated[str, Meta(description="Where the reference runs, as torch names it: cpu, cuda, cuda:1 ...")] = (
        "cpu"
    )
    seed: Annotated[
        int | None, Meta(description="Which media to make (default: others in each run, that no cache holds yet).")
    ] = None
    timeout_s: Annotated[float, Meta(gt=0, description="Time limit for each answer.")] = 300.0
    json: Annotated[str | None, Meta(description="Write the report to this file too, as JSON.")] = None
    api_key: Annotated[
        str | None, Meta(description="Key to send as a bearer token (default: TRIPTYCH_API_KEY, else none).")
    ] = None
