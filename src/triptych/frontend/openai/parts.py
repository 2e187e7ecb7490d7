"""Defines the content parts of messages: texts, refusals and media."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from triptych.contracts.media import MediaKind
from triptych.media.fetch.data_url import of_base64


class ImageUrl(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    detail: str | None = None


class MediaUrl(msgspec.Struct, forbid_unknown_fields=True):
    url: str


class AudioData(msgspec.Struct, forbid_unknown_fields=True):
    data: str
    format: str


class TextPart(msgspec.Struct, tag="text", forbid_unknown_fields=True):
    text: str


class RefusalPart(msgspec.Struct, tag="refusal", forbid_unknown_fields=True):
    """The reason why the assistant did not answer, in one of its messages."""

    refusal: str


class ImagePart(msgspec.Struct, tag="image_url", forbid_unknown_fields=True):
    kind: ClassVar[MediaKind] = "image"
    is_embedding: ClassVar[bool] = False
    image_url: ImageUrl | str

    @property
    def url(self) -> str:
        return _url(self.image_url)


class VideoPart(msgspec.Struct, tag="video_url", forbid_unknown_fields=True):
    kind: ClassVar[MediaKind] = "video"
    is_embedding: ClassVar[bool] = False
    video_url: MediaUrl | str

    @property
    def url(self) -> str:
        return _url(self.video_url)


class AudioPart(msgspec.Struct, tag="audio_url", forbid_unknown_fields=True):
    kind: ClassVar[MediaKind] = "audio"
    is_embedding: ClassVar[bool] = False
    audio_url: MediaUrl | str

    @property
    def url(self) -> str:
        return _url(self.audio_url)


class InputAudioPart(msgspec.Struct, tag="input_audio", forbid_unknown_fields=True):
    kind: ClassVar[MediaKind] = "audio"
    is_embedding: ClassVar[bool] = False
    input_audio: AudioData

    @property
    def url(self) -> str:
        """The data as a ``data:`` URL. The format that the part names is not used: the first bytes of the data
        decide."""
        return of_base64(self.input_audio.data)


class ImageEmbedsPart(msgspec.Struct, tag="image_embeds", forbid_unknown_fields=True):
    kind: ClassVar[MediaKind] = "image"
    is_embedding: ClassVar[bool] = True
    image_embeds: MediaUrl | str

    @property
    def url(self) -> str:
        return _url(self.image_embeds)


class VideoEmbedsPart(msgspec.Struct, tag="video_embeds", forbid_unknown_fields=True):
    kind: ClassVar[MediaKind] = "video"
    is_embedding: ClassVar[bool] = True
    video_embeds: MediaUrl | str

    @property
    def url(self) -> str:
        return _url(self.video_embeds)


class AudioEmbedsPart(msgspec.Struct, tag="audio_embeds", forbid_unknown_fields=True):
    kind: ClassVar[MediaKind] = "audio"
    is_embedding: ClassVar[bool] = True
    audio_embeds: MediaUrl | str

    @property
    def url(self) -> str:
        return _url(self.audio_embeds)


MediaPart = ImagePart | VideoPart | AudioPart | InputAudioPart | ImageEmbedsPart | VideoEmbedsPart | AudioEmbedsPart
"""A part that names one medium: ``url`` leads to its file, or to its embedding; the field has the name of the tag."""
Part = TextPart | RefusalPart | MediaPart


def _url(given: ImageUrl | MediaUrl | str) -> str:
    return given if isinstance(given, str) else given.url
