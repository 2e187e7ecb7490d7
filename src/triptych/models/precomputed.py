"""Media that come as their embeddings: what each family asks of one, and the facts of any medium, come as it may."""

from __future__ import annotations

from collections.abc import Callable

from triptych.contracts.request import Medium, Metadata
from triptych.models.base import Checkpoint, Expansion, Modality, Tokenise


def tokens_of(modality: Modality, checkpoint: Checkpoint, medium: Medium) -> int:
    """Rows of the embedding of ``medium``. Raises ValueError for one that the model refuses."""
    if medium.precomputed is None:
        return modality.tokens(checkpoint, medium)
    return checked(modality, checkpoint, medium)[0]


def expansion_of(modality: Modality, checkpoint: Checkpoint, medium: Medium, tokenise: Tokenise) -> Expansion:
    """What the placeholder of ``medium`` becomes. Raises as ``tokens_of`` does."""
    if medium.precomputed is None:
        return modality.expand(checkpoint, medium, tokenise)
    token = modality.placeholder(checkpoint)
    return Expansion((token,) * tokens_of(modality, checkpoint, medium), token)


def metadata_of(modality: Modality, checkpoint: Checkpoint, medium: Medium) -> Metadata:
    """What the language model must know of ``medium`` beside its embedding. Raises as ``expansion_of`` does."""
    if medium.precomputed is None:
        return modality.metadata(checkpoint, medium)
    return checked(modality, checkpoint, medium)[1]


def checked(modality: Modality, checkpoint: Checkpoint, medium: Medium) -> tuple[int, Metadata]:
    """(tokens, metadata) of a precomputed medium, by its rows and what came with it. Raises ValueError."""
    assert medium.precomputed is not None
    if modality.precomputed is None:
        raise ValueError(f"this model takes no precomputed embeddings of kind {medium.kind}")
    return modality.precomputed(checkpoint, medium.precomputed.shape[0], medium.metadata)


def only(metadata: Metadata, *known: str) -> None:
    """Raises ValueError for anything in ``metadata`` beside ``known``, or that lacks of it."""
    names = ", ".join(known) or "nothing"
    for name in metadata:
        if name not in known:
            raise ValueError(f"the embedding comes with {name!r}; this model wants with it: {names}")
    for name in known:
        if name not in metadata:
            raise ValueError(f"the embedding comes without {name!r}, which this model needs with it")


def grid_rule(
    name: str, merge_size: Callable[[Checkpoint], int], *, most_steps: int | None = None
) -> Callable[[Checkpoint, int, Metadata], tuple[int, Metadata]]:
    """``Modality.precomputed`` of models that lay tokens out in a grid, of which ``name`` tells the patches.

    The grid is (steps in time, rows, columns), in patches, before ``merge_size`` x ``merge_size`` of them become a
    token. As no side is larger than the product, no position lies beyond the tokens that the context has room for.
    ``most_steps`` bounds the first side.
    """

    def check(checkpoint: Checkpoint, rows: int, metadata: Metadata) -> tuple[int, Metadata]:
        only(metadata, name)
        grid, merge = metadata[name], merge_size(checkpoint)
        if not isinstance(grid, tuple) or len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"{name} must be three positive numbers (time, rows, columns), not {grid}")
        steps, high, wide = grid
        if most_steps is not None and steps > most_steps:
            raise ValueError(f"{name} has {steps} steps in time; at most {most_steps} is right here")
        if high % merge or wide % merge:
            raise ValueError(f"rows and columns in {name}, {high} x {wide}, must be multiples of {merge}")
        tokens = steps * (high // merge) * (wide // merge)
        if tokens != rows:
            raise ValueError(f"{name} {list(grid)} makes {tokens} tokens, but the embedding has {rows}")
        return rows, {name: grid}

    return check


def count_rule(
    fewest: Callable[[Checkpoint], int], most: Callable[[Checkpoint], int]
) -> Callable[[Checkpoint, int, Metadata], tuple[int, Metadata]]:
    """``Modality.precomputed`` of models that want so many tokens, and nothing with them."""

    def check(checkpoint: Checkpoint, rows: int, metadata: Metadata) -> tuple[int, Metadata]:
        only(metadata)
        low, high = fewest(checkpoint), most(checkpoint)
        if not low <= rows <= high:
            wanted = f"{low}" if low == high else f"{low} to {high}"
            raise ValueError(f"the embedding has {rows} tokens; this model takes {wanted}")
        return rows, {}

    return check
