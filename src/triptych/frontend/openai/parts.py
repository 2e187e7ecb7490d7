"""Defines the content parts of messages: texts, refusals and media."""

from __future__ import annotations

import msgspec


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
    """In a message of the assistant: why it did not answer."""

    refusal: str


class ImagePart(msgspec.Struct, tag="image_url", forbid_unknown_fields=True):
    image_url: ImageUrl | str


class VideoPart(msgspec.Struct, tag="video_url", forbid_unknown_fields=True):
    video_url: MediaUrl | str


class AudioPart(msgspec.Struct, tag="audio_url", forbid_unknown_fields=True):
    audio_url: MediaUrl | str


class InputAudioPart(msgspec.Struct, tag="input_audio", forbid_unknown_fields=True):
    input_audio: AudioData


class ImageEmbedsPart(msgspec.Struct, tag="image_embeds", forbid_unknown_fields=True):
    image_embeds: MediaUrl | str


class VideoEmbedsPart(msgspec.Struct, tag="video_embeds", forbid_unknown_fields=True):
    video_embeds: MediaUrl | str


class AudioEmbedsPart(msgspec.Struct, tag="audio_embeds", forbid_unknown_fields=True):
    audio_embeds: MediaUrl | str


EmbedsPart = ImageEmbedsPart | VideoEmbedsPart | AudioEmbedsPart
MediaPart = ImagePart | VideoPart | AudioPart | InputAudioPart
Part = TextPart | RefusalPart | MediaPart | EmbedsPart
