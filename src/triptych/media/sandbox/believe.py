"""Checks a decoder's answer against the facts that its parent knows: a medium may have taken the decoder over."""

from __future__ import annotations

import math
from typing import NamedTuple

from triptych.config.media import MediaLimits
from triptych.contracts.errors import WireError
from triptych.contracts.media import DecodableMedium, MediaKind, Picture, Sound, Video
from triptych.media import errors
from triptych.media.formats.audio import RATES_HZ, SAMPLE_BYTES, SUPPORTED_SOUNDS, resampled_length
from triptych.media.formats.sniff import PIXEL_BYTES, SUPPORTED_IMAGES, inspect_image
from triptych.media.formats.video import MAX_FPS, RGB_BYTES, SUPPORTED_VIDEOS
from triptych.media.sandbox.wire import INLINE_BYTES, Done

_STATUSES = (400, 413, 415, 500)
_CODES = {
    None,
    errors.DAMAGED,
    errors.TOO_LARGE,
    errors.TOO_SMALL,
    errors.UNSUPPORTED,
    "audio_not_installed",
    "video_not_installed",
}
MAX_MESSAGE_CHARS = 1000
_ROUNDING = 1.001

Facts = dict[str, str | int | float]


class Disbelieved(Exception):
    """Raised for an answer that no intact decoder gives. The message is for the log."""


class Expected(NamedTuple):
    """Describes the result of decoding, as far as it is known beforehand."""

    shape: tuple[int, ...]
    """The shape; a side of 0 is not known."""
    dtype: str
    """numpy's name of the element type; empty for a picture."""
    max_bytes: int
    """Maximum bytes of the result in memory, by the header and the limits."""

    def is_of(self, shape: tuple[int, ...]) -> bool:
        """Tells whether a result of ``shape`` is as expected."""
        if len(shape) != len(self.shape):
            return False
        return all(size == known if known else size > 0 for size, known in zip(shape, self.shape, strict=True))

    @property
    def lent_bytes(self) -> int:
        """Bytes of memory to lend for the result; 0 if it fits into the answer."""
        inline_bytes = self.max_bytes if self.dtype else self.max_bytes // PIXEL_BYTES * RGB_BYTES
        return self.max_bytes if inline_bytes > INLINE_BYTES else 0


def expected_of(medium: DecodableMedium, limits: MediaLimits, item: str) -> Expected:
    """Returns the expected result, by a picture's header or by the facts that the frontend read of another medium.

    Raises as ``inspect_image`` does for a picture.
    """
    match medium:
        case Picture():
            return _expected_picture(medium, limits, item)
        case Video():
            return _expected_video(medium, limits)
        case Sound():
            return _expected_sound(medium, limits)


def _expected_picture(medium: Picture, limits: MediaLimits, item: str) -> Expected:
    width, height = medium.width, medium.height
    if medium.data:
        _, width, height, _ = inspect_image(medium.data, limits, item)
    return Expected((height, width), "", width * height * PIXEL_BYTES)


def _expected_video(medium: Video, limits: MediaLimits) -> Expected:
    count, width, height = len(medium.frame_indices), medium.width, medium.height
    pixels = count * width * height or limits.media_max_video_pixels
    return Expected((count, height, width, 3), "uint8", min(pixels, limits.media_max_video_pixels) * RGB_BYTES)


def _expected_sound(medium: Sound, limits: MediaLimits) -> Expected:
    rate = medium.decode_rate or medium.sample_rate
    samples = resampled_length(medium.num_samples, medium.sample_rate, rate) if medium.sample_rate else 0
    max_samples = int(limits.media_max_audio_s * (rate or RATES_HZ[1]))
    return Expected((samples,), "float32", min(samples or max_samples, max_samples) * SAMPLE_BYTES)


def check_decoded(done: Done, expected: Expected, lent_bytes: int) -> None:
    """Raises Disbelieved unless ``done`` is as expected, and is there as a whole, in the memory lent or inline."""
    if done.dtype != expected.dtype or not expected.is_of(done.shape):
        raise Disbelieved("it answers with another type or shape")
    picture = not expected.dtype
    element = 1 if expected.dtype == "uint8" else PIXEL_BYTES if picture else SAMPLE_BYTES
    size_bytes = math.prod(done.shape) * element
    if size_bytes > expected.max_bytes:
        raise Disbelieved("it answers with more than there can be")
    if done.lent:
        whole = size_bytes <= lent_bytes and not done.data
    else:
        whole = len(done.data) == (math.prod(done.shape) * RGB_BYTES if picture else size_bytes)
    if not whole:
        raise Disbelieved("its answer is not whole")


def check_facts(facts: Facts, kind: MediaKind, limits: MediaLimits) -> None:
    """Raises Disbelieved unless ``media.formats.inspect`` could give ``facts`` for a medium within ``limits``."""
    types = _FACTS[kind]
    if {name: type(value) for name, value in facts.items()} != types or not _KINDS[kind](facts, limits):
        raise Disbelieved("it answers with facts of no such medium")


def checked_error(error: WireError, item: str) -> WireError:
    """Returns the error that a decoder answers, in a form that may be shown to a client.

    Raises Disbelieved if no intact decoder answers such an error.
    """
    if error.status not in _STATUSES or error.code not in _CODES or error.param not in (None, item):
        raise Disbelieved("it answers with an error that is none of its own")
    return WireError(error.status, printable(error.message, MAX_MESSAGE_CHARS), error.param, error.code)


def printable(text: str, max_chars: int) -> str:
    """Returns one printable line of ``text``, which may come from anybody."""
    return "".join(character if character.isprintable() else " " for character in text[:max_chars])


def _image(facts: Facts, limits: MediaLimits) -> bool:
    return facts["format"] in SUPPORTED_IMAGES and _has_size(facts, limits)


def _video(facts: Facts, limits: MediaLimits) -> bool:
    frames, fps = facts["num_frames"], facts["fps"]
    assert isinstance(frames, int)
    assert isinstance(fps, float)
    return (
        facts["format"] in SUPPORTED_VIDEOS
        and _has_size(facts, limits)
        and 0 < frames <= limits.media_max_video_frames
        and 0 < fps <= MAX_FPS  # not so NaN
        and frames / fps <= limits.media_max_video_s * _ROUNDING
        and frames * int(facts["width"]) * int(facts["height"]) <= limits.media_max_video_work
    )


def _audio(facts: Facts, limits: MediaLimits) -> bool:
    samples, rate = facts["num_samples"], facts["sample_rate"]
    assert isinstance(samples, int)
    assert isinstance(rate, int)
    return (
        facts["format"] in SUPPORTED_SOUNDS
        and RATES_HZ[0] <= rate <= RATES_HZ[1]
        and 0 < samples <= limits.media_max_audio_s * rate
    )


def _has_size(facts: Facts, limits: MediaLimits) -> bool:
    width, height = facts["width"], facts["height"]
    assert isinstance(width, int)
    assert isinstance(height, int)
    return min(width, height) >= limits.media_min_side_px and width * height <= limits.media_max_pixels


_FACTS: dict[MediaKind, dict[str, type]] = {
    "image": {"format": str, "width": int, "height": int},
    "video": {"format": str, "width": int, "height": int, "num_frames": int, "fps": float},
    "audio": {"format": str, "num_samples": int, "sample_rate": int},
}
_KINDS = {"image": _image, "video": _video, "audio": _audio}
