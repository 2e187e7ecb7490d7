"""Defines the body of ``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triptych.config.requests import RequestLimits
from triptych.frontend.openai.decoder import RequestDecoder
from triptych.frontend.openai.fields.table import COMPLETION
from triptych.frontend.openai.limits import too_many
from triptych.frontend.openai.request import GenerationFields, Wanted
from triptych.frontend.openai.weight import prompt_bytes

MAX_PROMPTS = 64
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of ``max_tokens`` for plain completions."""


class CompletionRequest(GenerationFields, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]]
    """The prompts as texts or token ids. Long lists of ids are decoded to ``TokenIds`` (``openai.body.large_body``)."""
    logprobs: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    def drop_prompt(self) -> None:
        self.prompt = ""

    @property
    def prompt_field(self) -> str:
        return "prompt"

    @property
    def field_of_many(self) -> str:
        return "n" if (self.n or 1) > 1 else "prompt"

    @property
    def default_max_tokens(self) -> int:
        return DEFAULT_MAX_TOKENS

    def wanted_logprobs(self) -> Wanted:
        return Wanted("logprobs", self.logprobs)

    def check_counts(self, limits: RequestLimits) -> None:
        super().check_counts(limits)
        prompt = self.prompt
        if isinstance(prompt, list) and len(prompt) > MAX_PROMPTS and not isinstance(prompt[0], int):
            raise too_many("prompt", len(prompt), "prompts", MAX_PROMPTS)

    def weight(self) -> int:
        return prompt_bytes(self.prompt)

    def restore_token_ids(self, restore: Callable[[Any], Any]) -> None:
        self.prompt = restore(self.prompt)


parse_completion = RequestDecoder(CompletionRequest, COMPLETION)
