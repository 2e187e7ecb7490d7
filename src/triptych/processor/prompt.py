"""Defines a prompt that is ready for a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.contracts.errors import TriptychError
from triptych.contracts.media import Medium
from triptych.contracts.tokens import TokenIds
from triptych.media.errors import by_content, on_item
from triptych.router.routing import PromptKeys

_WORKERS_NAMES = ("prompt", "media")
"""Names that workers have for the prompt, and for its media together."""


@dataclass(frozen=True)
class Prompt:
    """Holds a prompt's tokens and media, and the facts about them that the frontend needs."""

    token_ids: TokenIds
    """Token ids with one placeholder for each medium."""
    media: list[Medium]
    length: int
    """Number of tokens that the model will see, with expanded placeholders."""
    keys: PromptKeys
    """The prompt keys: token ids as workers' KV caches have them, with expanded placeholders and media by their
    content.
    """
    media_s: float = 0.0
    tokenise_s: float = 0.0
    items: Sequence[str] = ()
    """The request's fields that name ``media``."""
    field: str = "messages"
    """The request's field that the prompt was made of."""

    def by_field(self, error: TriptychError) -> TriptychError:
        """Converts a worker's ``error``, which names a medium by its content, to one about the request's field."""
        for index, (medium, item) in enumerate(zip(self.media, self.items, strict=True)):
            error = on_item(on_item(error, by_content(medium), item), f"media[{index}]", item)
        for name in _WORKERS_NAMES:
            error = on_item(error, name, self.field)
        return error
