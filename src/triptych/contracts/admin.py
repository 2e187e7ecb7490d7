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
"""A cache of a worker: ``prefix`` has KV caches of earlier prompts, ``media`` has media that the engine decoded,
processed or encoded, and ``embeddings`` has embeddings that the worker may hand over again."""
ANSWER_S = 10.0
"""The time limit of a worker for an action that waits for nothing."""
MAX_WAIT_S = 60.0


@dataclass(frozen=True)
class Action(Generic[P, R]):
    """One action of the instances that have the ability ``ability``."""

    name: str
    """The name of the workers' endpoint. With hyphens it is the last part of the frontend's route."""
    summary: str
    """One imperative sentence for the documentation that says what the action does."""
    ability: str
    """The name of a field of ``engines.abilities.Abilities``."""
    params: type[P]
    """The type of the parameters. All its fields have defaults, so that a request may name the model alone."""
    result: type[R]
    limit_s: Callable[[P], float] = lambda params: ANSWER_S
    """Returns the time limit of a worker for given parameters."""
    undo: str = ""
    """The name of the action that reverses this one with the same parameters; empty if there is none."""


class ClearCaches(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of ``clear_caches``."""

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
    """The answer of one worker to ``clear_caches``."""

    cleared: tuple[CacheName, ...]
    """The caches that were cleared."""
    missing: tuple[CacheName, ...] = ()
    """The caches that the request named and that this worker does not have."""


CLEAR_CACHES = Action(
    name="clear_caches",
    summary="Clear what workers keep between requests",
    ability="cache_control",
    params=ClearCaches,
    result=CachesCleared,
    limit_s=lambda params: ANSWER_S + params.wait_s,
)

ACTIONS: dict[str, Action[Any, Any]] = {action.name: action for action in (CLEAR_CACHES,)}
"""All actions by name. One entry adds an action."""
