"""Defines the request fields that are common to all endpoints that generate text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from triptych.config.requests import RequestLimits
from triptych.frontend.openai.fields.sift import Ignored
from triptych.frontend.openai.limits import check_name, check_stops


class Wanted(NamedTuple):
    """A number in a request, with the name of its field."""

    field: str
    value: int | None
    """None if the request does not say."""


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GenerationFields(msgspec.Struct, kw_only=True, dict=True, forbid_unknown_fields=True):
    """The common fields, and the questions that each endpoint's requests answer in their own way."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    seed: int | None = None
    n: int | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    session_id: str | None = None
    cache_salt: str | None = None

    @property
    def ignored(self) -> Ignored | None:
        """The unknown fields of the body; None if it had none."""
        return self.__dict__.get("ignored")

    # Endpoints differ in these.

    def drop_prompt(self) -> None:
        """Drops what the prompt was made of. An answer may take long, and a letter of a text up to four bytes."""
        raise NotImplementedError

    @property
    def prompt_field(self) -> str:
        """The name of the field that holds the prompt."""
        raise NotImplementedError

    @property
    def field_of_many(self) -> str:
        """The name of the field that makes this request several generations."""
        return "n"

    @property
    def wanted_tokens(self) -> Wanted:
        """The most tokens that an answer may have."""
        return Wanted("max_tokens", self.max_tokens)

    @property
    def default_max_tokens(self) -> int | None:
        """The most tokens of an answer if the request does not say; None for the model's own default."""
        return None

    def wanted_logprobs(self) -> Wanted:
        """Returns how many alternatives of each token are wanted. Raises BadRequest if the fields contradict."""
        raise NotImplementedError

    def check_counts(self, limits: RequestLimits) -> None:
        """Checks everything that can be counted before rendering. Raises BadRequest with the field and its limit."""
        for name in ("model", "user", "cache_salt", "session_id"):
            check_name(name, getattr(self, name))
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        check_stops(stops, self.stop_token_ids, self.allowed_token_ids)

    def weight(self) -> int:
        """Returns the bytes that the request's texts, messages and settings take in memory."""
        raise NotImplementedError

    def restore_token_ids(self, restore: Callable[[Any], Any]) -> None:
        """Puts back into the prompt the token ids that were decoded apart from the rest of a large body."""

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
