"""Holds what all endpoints use to prepare generations: the configuration, the media loader and threads for text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from triptych.cache.memory_budget import Reservation
from triptych.config.serve import FrontendConfig
from triptych.contracts.errors import BadRequest
from triptych.contracts.media import Medium
from triptych.media.loader import MediaReference
from triptych.processor.text_work import TextWork


class MediaSource(Protocol):
    """Loads media; see ``media.loader.MediaLoader``."""

    def check_count(self, references: Sequence[MediaReference]) -> None: ...

    async def load(self, references: Sequence[MediaReference], holder: Reservation) -> list[Medium]: ...


@dataclass(frozen=True)
class Resources:
    """The shared parts of one frontend."""

    config: FrontendConfig
    media: MediaSource
    work: TextWork = field(default_factory=TextWork)

    def check_media(self, media: Sequence[MediaReference]) -> None:
        """Checks that the operator allows these media. Raises BadRequest with the place of the medium at fault."""
        if media and not self.config.enable_multimodal:
            raise BadRequest(
                f"{media[0].item}: this server takes text only; its operator can turn media on "
                "with --enable-multimodal",
                param=media[0].item,
                code="multimodal_disabled",
            )
        self.media.check_count(media)
        embeds = next((medium for medium in media if medium.precomputed), None)
        if embeds is not None and not self.config.enable_mm_embeds:
            raise BadRequest(
                f"{embeds.item}: this server takes no precomputed embeddings; its operator can turn them on "
                "with --enable-mm-embeds",
                param=embeds.item,
                code="mm_embeds_disabled",
            )
