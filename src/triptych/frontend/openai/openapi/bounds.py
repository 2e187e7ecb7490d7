"""Collects the limits of request fields, in the keywords of JSON schema."""

from __future__ import annotations

import math
from typing import Any

from triptych.config.serve import FrontendConfig
from triptych.frontend.openai.limits import MAX_NAME_CHARACTERS, MAX_TOKEN_IDS
from triptych.frontend.openai.sampling import BOUNDS, MAX_LOGIT_BIASES

Bounds = dict[tuple[str, str], dict[str, Any]]
"""Maps (schema class, field) to keywords of JSON schema."""


def bounds_of(config: FrontendConfig) -> Bounds:
    """Returns the limits that hold for every model, without those of one model: its context, its vocabulary."""
    bounds: Bounds = {}
    for schema in ("ChatRequest", "CompletionRequest"):
        for name, words in _shared(config).items():
            bounds[schema, name] = words
    bounds["ChatRequest", "messages"] = {"minItems": 1, "maxItems": config.max_messages}
    bounds["ChatRequest", "max_completion_tokens"] = {"minimum": 1}
    bounds["ChatRequest", "top_logprobs"] = {"minimum": 0}
    bounds["CompletionRequest", "logprobs"] = {"minimum": 0}
    bounds["CompletionRequest", "prompt"] = {"minItems": 1}
    for name in ("role", "name", "tool_call_id"):
        bounds["ChatMessage", name] = {"maxLength": MAX_NAME_CHARACTERS}
    bounds["ChatMessage", "content"] = {"maxItems": config.max_content_parts}
    return bounds


def _shared(config: FrontendConfig) -> dict[str, dict[str, Any]]:
    shared: dict[str, dict[str, Any]] = {
        "model": {"maxLength": MAX_NAME_CHARACTERS},
        "user": {"maxLength": MAX_NAME_CHARACTERS},
        "cache_salt": {"minLength": 1, "maxLength": MAX_NAME_CHARACTERS},
        "session_id": {"maxLength": MAX_NAME_CHARACTERS},
        "max_tokens": {"minimum": 1},
        "n": {"minimum": 1, "maximum": config.max_choices},
        "stop": {"minLength": 1, "maxItems": config.max_stop_strings},
        "stop_token_ids": {"maxItems": MAX_TOKEN_IDS},
        "allowed_token_ids": {"minItems": 1, "maxItems": MAX_TOKEN_IDS},
        "logit_bias": {"maxProperties": MAX_LOGIT_BIASES},
    }
    for name, bounds in BOUNDS.items():
        words = {"exclusiveMinimum" if bounds.open_low else "minimum": bounds.low}
        shared[name] = words if bounds.high == math.inf else {**words, "maximum": bounds.high}
    return shared
