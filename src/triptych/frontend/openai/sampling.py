"""Checks the generation fields of a request, and turns them into ``Sampling``. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from triptych.config.serve import FrontendConfig
from triptych.contracts.errors import BadRequest
from triptych.contracts.request import Sampling
from triptych.contracts.shown import cut
from triptych.frontend.openai.cache_salt import salt_of, salted_grammar
from triptych.frontend.openai.grammar.response_format import guided_of
from triptych.frontend.openai.request import GenerationFields
from triptych.processor.processor import Processor

MAX_LOGIT_BIASES = 1024
_FROM_GENERATION_CONFIG = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_INT32_MAX = (1 << 31) - 1
"""The largest count that engines can hold."""
_SEED_RANGE = (-(1 << 63), (1 << 63) - 1)


@dataclass(frozen=True)
class Bounds:
    """The allowed values of a number. With ``open_low`` the lower end is not allowed."""

    low: float
    high: float
    open_low: bool = False

    def check(self, name: str, value: float | None, param: str | None = None) -> None:
        if value is None or self.low < value <= self.high or (value == self.low and not self.open_low):
            return  # NaN compares as false; an int too large for a float compares correctly
        opening = "above" if self.open_low else "at least"
        ceiling = "" if self.high == math.inf else f" and at most {self.high}"
        raise BadRequest(
            f"{name} must be {opening} {self.low}{ceiling}, not {cut(str(value), 32)}", param=param or name
        )


BOUNDS: dict[str, Bounds] = {
    "temperature": Bounds(0, 2),
    "top_p": Bounds(0, 1, open_low=True),
    "min_p": Bounds(0, 1),
    "top_k": Bounds(-1, _INT32_MAX),
    "presence_penalty": Bounds(-2, 2),
    "frequency_penalty": Bounds(-2, 2),
    "repetition_penalty": Bounds(0, math.inf, open_low=True),
    "min_tokens": Bounds(0, _INT32_MAX),
    "seed": Bounds(*_SEED_RANGE),
}


def sampling_of(
    request: GenerationFields, processor: Processor, config: FrontendConfig, prompt_tokens: int
) -> Sampling:
    """Returns the checked sampling parameters. Raises BadRequest with the field and its limit."""
    for name, bounds in BOUNDS.items():
        bounds.check(name, getattr(request, name))
    _check_counts(request, config)
    max_tokens = _max_tokens(request, processor, prompt_tokens)
    if (request.min_tokens or 0) > max_tokens:
        raise BadRequest(f"min_tokens must be at most max_tokens, {max_tokens}", param="min_tokens")
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        **_drawing(request, processor),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        seed=request.seed,
        stop_token_ids=_token_ids("stop_token_ids", request.stop_token_ids, processor),
        ignore_eos=bool(request.ignore_eos),
        logprobs=_logprobs(request, processor),
        logit_bias=_logit_bias(request, processor),
        allowed_token_ids=_allowed(request, processor),
        guided=salted_grammar(guided_of(request.response_format, config), salt_of(request.cache_salt)),
    )


def _drawing(request: GenerationFields, processor: Processor) -> dict[str, Any]:
    """Returns values from the request, else the checkpoint's ``generation_config.json``, else OpenAI's defaults."""
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    for name in _FROM_GENERATION_CONFIG:
        value = getattr(request, name)
        if value is None:
            value = processor.checkpoint.generation.get(name)
        if value is not None:
            defaults[name] = value
    defaults["top_k"] = max(0, int(defaults["top_k"]))
    return defaults


def _check_counts(request: GenerationFields, config: FrontendConfig) -> None:
    if not 1 <= (1 if request.n is None else request.n) <= config.max_choices:
        raise BadRequest(f"n must be between 1 and {config.max_choices} (--max-choices)", param="n")
    stops = stop_strings(request)
    if len(stops) > config.max_stop_strings:
        raise BadRequest(
            f"stop has {len(stops)} strings; the limit is {config.max_stop_strings} (--max-stop-strings)",
            param="stop",
        )
    if "" in stops:
        raise BadRequest("stop strings must not be empty", param="stop")


def stop_strings(request: GenerationFields) -> list[str]:
    if request.stop is None:
        return []
    return [request.stop] if isinstance(request.stop, str) else request.stop


def _max_tokens(request: GenerationFields, processor: Processor, prompt_tokens: int) -> int:
    name, wanted = request.wanted_tokens
    context = processor.card.context_length
    room = context - prompt_tokens
    if room < 1:
        raise BadRequest(
            f"the prompt has {prompt_tokens:,} tokens; the model's context length is {context:,} tokens, "
            "of which the answer needs at least one",
            param=request.prompt_field,
            code="context_length_exceeded",
        )
    if wanted is None:
        usual = request.default_max_tokens or processor.checkpoint.generation.get("max_new_tokens") or room
        return min(usual, room)
    if wanted < 1:
        raise BadRequest(f"{name} must be at least 1, not {cut(str(wanted), 32)}", param=name)
    if wanted > room:
        raise BadRequest(
            f"{name} is {cut(f'{wanted:,}', 32)} and the prompt has {prompt_tokens:,} tokens; together they may be "
            f"at most {context:,}, the model's context length",
            param=name,
            code="context_length_exceeded",
        )
    return wanted


def _logprobs(request: GenerationFields, processor: Processor) -> int | None:
    limit = processor.card.max_logprobs
    limit = limit if limit >= 0 else processor.tokenizer.vocabulary_size
    name, wanted = request.wanted_logprobs()
    if wanted is not None and not 0 <= wanted <= limit:
        raise BadRequest(f"{name} must be between 0 and {limit}, not {cut(str(wanted), 32)}", param=name)
    return wanted


def _token_ids(name: str, ids: list[int] | None, processor: Processor) -> tuple[int, ...]:
    for index, token in enumerate(ids or ()):
        _check_id(f"{name}[{index}]", token, processor, name)
    return tuple(ids or ())


def _allowed(request: GenerationFields, processor: Processor) -> tuple[int, ...]:
    """Returns the allowed token ids. Raises BadRequest if no token could be drawn: engines do not define that case."""
    name, ids = "allowed_token_ids", request.allowed_token_ids
    if ids is None:
        return ()
    if not ids:
        raise BadRequest(f"{name} must not be empty: leave it out to allow all", param=name)
    if request.response_format is not None and request.response_format.type != "text":
        raise BadRequest(
            f"{name} cannot be combined with response_format, which says itself what is allowed", param=name
        )
    if request.min_tokens and set(ids) <= {*(request.stop_token_ids or ()), *_ends(processor)}:
        raise BadRequest(f"{name} needs a token that does not end the answer, as min_tokens forbids that", param=name)
    return _token_ids(name, ids, processor)


def _ends(processor: Processor) -> set[int]:
    """Returns the tokens that end a text, from all files of the checkpoint that name one."""
    end_tokens: list[Any] = [
        processor.tokenizer.fast.token_to_id(processor.tokenizer.special_tokens().get("eos_token", ""))
    ]
    for file in (processor.checkpoint.generation, processor.checkpoint.text_config):
        ends = file.get("eos_token_id")
        end_tokens += ends if isinstance(ends, list) else [ends]
    return {token for token in end_tokens if isinstance(token, int)}


def _logit_bias(request: GenerationFields, processor: Processor) -> dict[int, float] | None:
    bias = request.logit_bias
    if not bias:
        return None
    if len(bias) > MAX_LOGIT_BIASES:
        raise BadRequest(f"logit_bias has {len(bias)} entries; the limit is {MAX_LOGIT_BIASES}", param="logit_bias")
    for token, value in bias.items():
        name = f"logit_bias.{cut(str(token), 32)}"
        _check_id(name, token, processor, "logit_bias")
        Bounds(-100, 100).check(name, value, "logit_bias")
    return bias


def _check_id(name: str, token: int, processor: Processor, param: str) -> None:
    size = processor.tokenizer.vocabulary_size
    if not 0 <= token < size:
        raise BadRequest(
            f"{name}: {cut(str(token), 32)} is not a token id: those of this model are between 0 and {size - 1}, "
            f"below the size of its vocabulary, {size}",
            param=param,
        )
