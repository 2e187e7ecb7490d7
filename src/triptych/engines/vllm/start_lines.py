"""Recognises, in vLLM's log lines, the phases of its start and the reason of a failure."""

from __future__ import annotations

import re

PHASES = (
    ("Initializing a V1 LLM engine", "making the model's executor"),
    ("Starting to load model", "loading the weights"),
    ("Loading weights took", "making the KV cache"),
    ("Model loading took", "measuring the memory that is left"),
    ("Encoder cache will be initialized", "measuring the memory that is left"),
    ("Available KV cache memory", "making the KV cache"),
    ("KV cache size:", "making the KV cache"),
    ("Warming up model", "warming up"),
    ("Compile and warming up model", "warming up"),
    ("Graph capturing finished", "warming up"),
    ("init engine (profile, create kv cache, warmup model) took", "connecting to the engine"),
)
"""Parts of lines of the level INFO."""
_CAUSE_IS_ELSEWHERE = "See root cause above"
_RAISED = re.compile(
    r"^(?:\(\S+ pid=\d+\) (?:ERROR \S+ \S+ \[[^\]]*\] )?)?"
    r"(?:\w+\.)*(?P<type>\w+(?:Error|Exception)): (?P<message>.*\S)"
)
"""The last line of a traceback, as Python or vLLM's logger writes it."""


def root_cause(error: BaseException, output: str) -> str | None:
    """Returns in one line why vLLM's own process failed, from its output. None if another failure is the cause.

    ``error`` says no more than that it failed; the cause is the last exception in ``output``.
    """
    if _CAUSE_IS_ELSEWHERE not in str(error):
        return None
    causes = [found for line in output.splitlines() if (found := _RAISED.match(line))]
    return f"{causes[-1]['type']}: {causes[-1]['message']}" if causes else None
