"""Limits the M-RoPE positions of a prompt. In models that count time in seconds, a slow video takes more positions than
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from triptych.contracts.media import Medium
from triptych.models.base import Checkpoint, ModelFamily

_BESIDE = 3
"""Positions beside the tokens, for each token of the context. vLLM keeps angles for four positions a token
(``MRotaryEmbedding``), one of which is for the token itself. A position beyond them ends its engine."""
_CONTEXT = 32_768
"""Default of transformers 5.19 (``Qwen2_5_VLTextConfig``), for checkpoints that leave it out."""


class PositionsTooFar(ValueError):
    """Raised if the engine has no angles for a prompt with this medium."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index
        """The medium's index among those of the prompt."""


def check_positions(family: ModelFamily, checkpoint: Checkpoint, media: Sequence[Medium]) -> None:
    """Raises PositionsTooFar if ``media`` together take more positions beside their tokens than there are. Raises
    ValueError as ``Modality.tokens`` does."""
    context = checkpoint.context_length or _CONTEXT
    taken = 0
    for index, medium in enumerate(media):
        beside = family.media[medium.kind].positions
        if beside is None:
            continue
        taken += beside(checkpoint, medium)
        if taken > _BESIDE * context:
            raise PositionsTooFar(
                f"the frames that the model sees of this {medium.kind} are too far apart for its context of "
                f"{context:,} tokens: by their times (second_per_grid_ts) the request's media take {taken:,} positions "
                f"beside their tokens, of at most {_BESIDE * context:,}",
                index,
            )
