"""Checks precomputed embeddings by their family's rule, and returns tokens and facts of any medium."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from triptych.contracts.media import Medium, Metadata, Numbers, PrecomputedEmbedding
from triptych.contracts.shown import shown
from triptych.models.base import Checkpoint, Expansion, Modality, Tokenise

_GRID = "three positive whole numbers (time, rows, columns)"
_SHOWN = 4
"""Number of values of a wrong tensor that an error message repeats."""


class Steps(NamedTuple):
    """A video's steps in time, by its grid."""

    number: int
    tokens: int
    """Tokens of each step."""


class Times(NamedTuple):
    """Describes a tensor of seconds that comes with a video's grid, and how it is checked."""

    name: str
    wanted: Callable[[Checkpoint, Steps], str]
    """Describes in words the form that the fact must have."""
    fits: Callable[[Checkpoint, Steps, Numbers], bool]
    """Tells whether finite numbers have that form."""
    for_model: bool = True
    """Whether the language model gets the fact. Otherwise only the prompt depends on it."""


def tokens_of(modality: Modality[Any], checkpoint: Checkpoint, medium: Medium) -> int:
    """Returns the rows of the embedding of ``medium``. Raises ValueError if the model refuses the medium."""
    if isinstance(medium, PrecomputedEmbedding):
        return checked(modality, checkpoint, medium)[0]
    return modality.tokens(checkpoint, medium)


def expansion_of(modality: Modality[Any], checkpoint: Checkpoint, medium: Medium, tokenise: Tokenise) -> Expansion:
    """Returns what the placeholder of ``medium`` becomes. Raises as ``tokens_of`` does."""
    if not isinstance(medium, PrecomputedEmbedding):
        return modality.expand(checkpoint, medium, tokenise)
    rows = tokens_of(modality, checkpoint, medium)
    if modality.precomputed_expansion is not None:
        return modality.precomputed_expansion(checkpoint, medium, tokenise)
    token = modality.placeholder(checkpoint)
    return Expansion((token,) * rows, token)


def metadata_of(modality: Modality[Any], checkpoint: Checkpoint, medium: Medium) -> Metadata:
    """Returns the facts about ``medium`` that the language model needs beside its embedding.

    Raises as ``expansion_of`` does.
    """
    if isinstance(medium, PrecomputedEmbedding):
        return checked(modality, checkpoint, medium)[1]
    return modality.metadata(checkpoint, medium)


def checked(modality: Modality[Any], checkpoint: Checkpoint, medium: PrecomputedEmbedding) -> tuple[int, Metadata]:
    """Returns (tokens, facts for the language model) of a precomputed medium, by its rows and facts.

    Raises ValueError, which names the tensor that is missing, wrong or not expected.
    """
    if modality.precomputed is None:
        raise ValueError(f"this model takes no precomputed embeddings of kind {medium.kind}")
    return modality.precomputed(checkpoint, medium.shape[0], medium.metadata)


def only(metadata: Metadata, *known: str) -> None:
    """Checks names. Raises ValueError if ``metadata`` holds anything beside ``known``."""
    names = ", ".join(known) or "nothing"
    for name in metadata:
        if name not in known:
            raise ValueError(f"the embedding comes with {shown(name)}; this model wants with it: {names}")


def grid_rule(
    name: str, merge_size: Callable[[Checkpoint], int], *times: Times, max_steps: int | None = None
) -> Callable[[Checkpoint, int, Metadata], tuple[int, Metadata]]:
    """Returns ``Modality.precomputed`` of models that lay tokens out in a grid, which the fact ``name`` states.

    The grid is (steps in time, rows, columns), in patches, before ``merge_size`` x ``merge_size`` of them become a
    token. As no side is larger than the product, no position lies beyond the tokens that the context has room for.
    ``max_steps`` limits the first side. ``times`` are further tensors that must come with it.
    """

    def check(checkpoint: Checkpoint, rows: int, metadata: Metadata) -> tuple[int, Metadata]:
        only(metadata, name, *(tensor.name for tensor in times))
        facts: Metadata = {name: _needed(metadata, name, _GRID, _is_grid)}
        number, high, wide = map(int, facts[name])
        merge = merge_size(checkpoint)
        if max_steps is not None and number > max_steps:
            raise ValueError(f"{name} has {number} steps in time; at most {max_steps} is right here")
        if high % merge or wide % merge:
            raise ValueError(f"rows and columns in {name}, {high} x {wide}, must be multiples of {merge}")
        steps = Steps(number, (high // merge) * (wide // merge))
        if (made := steps.number * steps.tokens) != rows:
            raise ValueError(f"{name} {[number, high, wide]} makes {made} tokens, but the embedding has {rows}")
        for tensor in times:
            fits = functools.partial(_fits, tensor, checkpoint, steps)
            values = _needed(metadata, tensor.name, tensor.wanted(checkpoint, steps), fits)
            if tensor.for_model:
                facts[tensor.name] = tuple(map(float, values))
        return rows, facts

    return check


def _needed(metadata: Metadata, name: str, wanted: str, fits: Callable[[Numbers], bool]) -> Numbers:
    """Returns the fact ``name``. Raises ValueError if it is missing, or does not fit."""
    if name not in metadata:
        raise ValueError(f"the embedding comes without {shown(name)}, which this model needs with it: {wanted}")
    values = metadata[name]
    if not fits(values):
        more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        raise ValueError(f"{name} must be {wanted}, not {list(values[:_SHOWN])}{more}")
    return values


def _is_grid(values: Numbers) -> bool:
    return len(values) == 3 and all(isinstance(side, int) and side > 0 for side in values)


def _fits(times: Times, checkpoint: Checkpoint, steps: Steps, values: Numbers) -> bool:
    return all(map(math.isfinite, values)) and times.fits(checkpoint, steps, values)


def count_rule(
    min_tokens: Callable[[Checkpoint], int], max_tokens: Callable[[Checkpoint], int]
) -> Callable[[Checkpoint, int, Metadata], tuple[int, Metadata]]:
    """Returns ``Modality.precomputed`` of models that want a fixed number of tokens, and no facts."""

    def check(checkpoint: Checkpoint, rows: int, metadata: Metadata) -> tuple[int, Metadata]:
        only(metadata)
        low, high = min_tokens(checkpoint), max_tokens(checkpoint)
        if not low <= rows <= high:
            wanted = f"{low}" if low == high else f"{low} to {high}"
            raise ValueError(f"the embedding has {rows} tokens; this model takes {wanted}")
        return rows, {}

    return check
