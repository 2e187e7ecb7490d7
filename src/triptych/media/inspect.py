"""What is known of a medium without decoding it, by kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triptych.config.media import MediaLimits
from triptych.contracts.errors import UnsupportedMedia
from triptych.contracts.request import MediaKind
from triptych.media.errors import UNSUPPORTED, problem
from triptych.media.sniff import inspect_image

Facts = dict[str, Any]
"""Values of ``Medium`` by the names of its fields."""


def _image(data: bytes, limits: MediaLimits, item: str) -> Facts:
    info = inspect_image(data, limits, item)
    return {"format": info.format, "width": info.width, "height": info.height}


_KINDS: dict[MediaKind, Callable[[bytes, MediaLimits, str], Facts]] = {"image": _image}


def inspect(kind: MediaKind, data: bytes, limits: MediaLimits, item: str) -> Facts:
    """Check a medium against ``limits`` by its header. Some microseconds.

    Raises UnsupportedMedia (415) for other files, BadRequest (400) for a damaged header, PayloadTooLarge (413) over a
    limit.
    """
    if kind not in _KINDS:
        raise problem(UnsupportedMedia, item, UNSUPPORTED, f"media of kind {kind} are not served yet")
    return _KINDS[kind](data, limits, item)
