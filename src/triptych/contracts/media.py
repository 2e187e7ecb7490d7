"""Defines the media of a request: pictures, videos, sounds, and embeddings that clients computed.

A medium is one of the Structs of the union ``Medium``; the tag ``type`` tells on the wire which one. What they have in
common stands in ``BaseMedium``. Code that treats them differently dispatches on the type (a method here, a table by
type, or ``match``), once for each concern.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from triptych.contracts.tensor import TensorHandle

MediaKind = Literal["image", "video", "audio"]
"""The kind of a medium, as OpenAI's API and the engines name it."""
Data = bytes | memoryview
"""A file's bytes. Those of a large file are a read-only view of the memory in which they arrived."""
MAX_NUMBERS = 512
"""The limit on the values of one metadata entry: enough for the times of 1024 frames, two to a step."""
Numbers = Annotated[tuple[int | float, ...], Meta(max_length=MAX_NUMBERS)]
Metadata = dict[str, Numbers]
"""Facts about a medium by the names of the model's own processor: ``{"image_grid_thw": (1, 16, 16)}``."""

if TYPE_CHECKING:
    _Data = Data
else:  # decoded as a view of the message: a copy of 50 MiB would hold the event loop for 20 ms
    _Data = memoryview


class BaseMedium(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Holds what every medium has: its name, and as much of its content as the receiver is believed to lack.

    It comes with ``data``, with an ``embedding`` to fetch, or, to a worker that is believed to hold what it needs,
    with neither; a worker that does not hold it answers MediaMissing and is asked again with more.
    """

    content_hash: str
    """Hex name of the content (``media.naming``): the key of every cache, never the URL."""
    data: _Data = b""
    """The file, not decoded yet; of a precomputed embedding its values, row by row."""
    metadata: Metadata = {}
    """Facts that the language model must know beside the embedding's values."""
    embedding: TensorHandle | None = None
    """[tokens, hidden]; of media that are handed over as frames (``ModelCard.by_frames``) the frames: uint8
    [frames, height, width, 3]."""

    @property
    def unknown(self) -> str:
        """Returns why the medium's tokens cannot be counted without decoding it; empty if they can."""
        return ""


class MediaFile(BaseMedium, frozen=True, kw_only=True):
    """The base of media that come as files and that workers decode. ``metadata`` follows from these fields."""

    kind: ClassVar[MediaKind]
    noun: ClassVar[str]
    """The word for such a medium in messages to users."""
    format: str = ""
    """File format found by its magic bytes, in Pillow's spelling for images: ``PNG``, ``JPEG``, ``MP4`` ..."""


class Picture(MediaFile, frozen=True, kw_only=True, tag="picture"):
    """A fetched and checked picture."""

    kind: ClassVar[MediaKind] = "image"
    noun: ClassVar[str] = "picture"
    width: int = 0
    """Pixels as the model will see the picture (EXIF rotation applied)."""
    height: int = 0

    @property
    def unknown(self) -> str:
        return "" if self.width > 0 and self.height > 0 else "the size of this image is not known"


class Video(MediaFile, frozen=True, kw_only=True, tag="video"):
    """A fetched and checked video, and the frames of it that the model sees."""

    kind: ClassVar[MediaKind] = "video"
    noun: ClassVar[str] = "video"
    width: int = 0
    """Pixels as the model will see the frames (display rotation applied)."""
    height: int = 0
    num_frames: int = 0
    """The number of frames in the file."""
    fps: float = 0.0
    """The average number of frames in a second."""
    frame_indices: tuple[int, ...] = ()
    """Which of the file's frames the model sees, ascending, from 0. Decided at the edge by the model's rule
    (``models``) and a part of ``content_hash``."""

    @property
    def unknown(self) -> str:
        if self.width < 1 or self.height < 1:
            return "the size of this video is not known"
        return "" if self.frame_indices else "it is not known which frames of this video are meant"


class Sound(MediaFile, frozen=True, kw_only=True, tag="sound"):
    """A fetched and checked sound."""

    kind: ClassVar[MediaKind] = "audio"
    noun: ClassVar[str] = "sound"
    num_samples: int = 0
    """The number of samples of one channel, at the rate of the file."""
    sample_rate: int = 0
    """The rate of the file, in Hz."""
    decode_rate: int = 0
    """The rate to which the worker that decodes the sound resamples it, in Hz; 0 keeps the file's own rate."""

    @property
    def unknown(self) -> str:
        return "" if self.num_samples > 0 else "the length of this sound is not known"


class PrecomputedEmbedding(BaseMedium, frozen=True, kw_only=True, tag="precomputed"):
    """A medium whose embedding the client sent: there is nothing to decode or encode.

    ``metadata`` is what came with it; the language model may be told only a part of that.
    """

    kind: MediaKind
    """The kind of the medium that the embedding was computed from."""
    shape: tuple[int, int]
    """The embedding's (tokens, width)."""
    dtype: str
    """``float32``, ``float16`` or ``bfloat16``; little-endian."""


DecodableMedium = Picture | Video | Sound
Medium = Picture | Video | Sound | PrecomputedEmbedding
FILE_TYPES: dict[MediaKind, type[DecodableMedium]] = {medium.kind: medium for medium in (Picture, Video, Sound)}
"""The type of a medium that comes as a file, by what the request says that it is."""
