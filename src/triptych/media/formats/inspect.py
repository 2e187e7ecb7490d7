"""Reads the facts about a medium that need no decoding, by kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triptych.config.media import MediaLimits
from triptych.contracts.errors import UnsupportedMedia
from triptych.contracts.media import Data, MediaKind
from triptych.media.errors import UNSUPPORTED, problem
from triptych.media.formats.audio import inspect_audio
from triptych.media.formats.sniff import inspect_image
from triptych.media.formats.video import inspect_video

Facts = dict[str, Any]
"""Values of a ``DecodableMedium`` by the names of its fields."""


def _image(data: Data, limits: MediaLimits, item: str) -> Facts:
    info = inspect_image(data, limits, item)
    return {"format": info.format, "width": info.width, "height": info.height}


def _audio(data: Data, limits: MediaLimits, item: str) -> Facts:
    info = inspect_audio(bytes(data), limits, item)
    return {"format": info.format, "num_samples": info.num_samples, "sample_rate": info.sample_rate}


def _video(data: Data, limits: MediaLimits, item: str) -> Facts:
    info = inspect_video(bytes(data), limits, item)
    size: Facts = {"width": info.width, "height": info.height}
    return {"format": info.format, **size, "num_frames": info.num_frames, "fps": info.fps}


_KINDS: dict[MediaKind, Callable[[Data, MediaLimits, str], Facts]] = {
    "image": _image,
    "video": _video,
    "audio": _audio,
}
QUICK: tuple[MediaKind, ...] = ("image",)
"""Kinds whose header is read in microseconds by Python code of this package, which no file can crash. Other kinds block
for longer and are read by libraries in C: they are to be inspected in a sandbox."""


def inspect(kind: MediaKind, data: Data, limits: MediaLimits, item: str) -> Facts:
    """Checks a medium against ``limits`` by its header. Blocks for microseconds to some 100 ms (``QUICK``).

    Raises UnsupportedMedia (415) for other files, BadRequest (400) for a damaged header, PayloadTooLarge (413) over a
    limit.
    """
    if kind not in _KINDS:
        raise problem(UnsupportedMedia, item, UNSUPPORTED, f"media of kind {kind} are not served yet")
    return _KINDS[kind](data, limits, item)
