"""Defines an endpoint that generates text: how its bodies are decoded, and how generations are made of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from triptych.cache.memory_budget import Reservation
from triptych.frontend.openai.answers import Answer
from triptych.frontend.openai.decoder import RequestDecoder
from triptych.frontend.openai.generation import Job
from triptych.frontend.openai.request import GenerationFields
from triptych.frontend.openai.resources import Resources
from triptych.processor.processor import Processor

T = TypeVar("T", bound=GenerationFields)


@dataclass(frozen=True)
class Endpoint(Generic[T]):
    """``POST path``."""

    path: str
    parse: RequestDecoder[T]
    build: Callable[[Resources, T, Processor, Reservation], Awaitable[tuple[list[Job], Answer]]]
    """Makes a request's jobs, and the format of their answer.

    The reservation counts the prompt's tokens and keeps the media. Raises BadRequest and other errors of the client
    with the field at fault, and the errors of the reservation.
    """
