"""Defines administrative actions: what operators can tell the workers of a model to do besides answering requests.

An action is one endpoint of the workers whose engine has the ability for it, and one route of the frontend, which calls
them all. Both are made from ``ACTIONS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

P = TypeVar("P", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)
CacheName = Literal["prefix", "media", "embeddings"]
"""``prefix``: KV caches of earlier prompts. ``media``: what the engine keeps of media, decoded, processed or encoded.
``embeddings``: what a worker keeps to hand it over again."""
ANSWER_S = 10.0
"""Longest time that a worker may take for an action that waits for nothing."""
MAX_WAIT_S = 60.0


@dataclass(frozen=True)
class Action(Generic[P, R]):
    """Something that instances with the ability ``ability`` do when they are told to."""

    name: str
    """The endpoint of workers; with hyphens, the last part of the frontend's route."""
    summary: str
    """What it does, for the documentation: an imperative."""
    ability: str
    """A field of ``engines.abilities.Abilities``."""
    params: type[P]
    """All fields have defaults, so that a request may be for the model alone."""
    result: type[R]
    limit_s: Callable[[P], float] = lambda params: ANSWER_S
    """Longest time that a worker may take."""
    undo: str = ""
    """The action that takes this one back, given the same parameters; empty: nothing does."""


class ClearCaches(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of ``clear_caches``."""

    caches: Annotated[tuple[CacheName, ...], Meta(description="Caches to clear; empty: all.")] = ()
    wait_s: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_WAIT_S,
            description="Longest wait for running requests to end; new ones are held back meanwhile.",
        ),
    ] = 0.0


class CachesCleared(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker cleared."""

    cleared: tuple[CacheName, ...]
    missing: tuple[CacheName, ...] = ()
    """Caches that were named and that this worker does not have."""


CLEAR_CACHES = Action(
    name="clear_caches",
    summary="Clear what workers keep between requests",
    ability="cache_control",
    params=ClearCaches,
    result=CachesCleared,
    limit_s=lambda params: ANSWER_S + params.wait_s,
)

ACTIONS: dict[str, Action[Any, Any]] = {action.name: action for action in (CLEAR_CACHES,)}
"""By name. One entry adds an action."""
