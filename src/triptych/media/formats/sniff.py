"""Recognises a file's type by its first bytes, and checks the size of a picture, before anything is decoded."""

from __future__ import annotations

import re
from typing import NamedTuple

from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge, UnsupportedMedia
from triptych.contracts.media import Data
from triptych.media.errors import DAMAGED, TOO_LARGE, TOO_SMALL, UNSUPPORTED, damaged, problem, too_many_bytes
from triptych.media.formats.image_header import HeaderError, read_header

SUPPORTED_IMAGES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")

_SUPPORTED = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WEBP"),
    # Either the next header states a known size, or the two reserved words are 0.
    (re.compile(rb"BM(.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|.{4}\0\0\0\0)", re.DOTALL), "BMP"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    # By its own brand, or by that of all pictures with its own among the compatible ones.
    (re.compile(rb".{4}ftyp(avi[fs]|m[is]f1.{4}(.{4}){0,12}?avi[fs])", re.DOTALL), "AVIF"),
    (re.compile(rb".{4}ftyp(hei[cxms]|mif1.{4}(.{4}){0,12}?hei[cxms])", re.DOTALL), "HEIC"),
)

# Files that people do send, so that the refusal can name them.
_UNSUPPORTED = (
    (re.compile(rb".{4}ftyp(hevc|hevx|mif1|msf1)", re.DOTALL), "HEIF without a picture of its own"),
    (re.compile(rb".{4}ftypqt", re.DOTALL), "QuickTime video"),
    (re.compile(rb".{4}ftypM4[AB] ", re.DOTALL), "audio"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "MP4 video"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "Matroska or WebM video"),
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), "AVI video"),
    (re.compile(rb"RIFF.{4}WAVE|ID3|OggS|fLaC", re.DOTALL), "audio"),
    (re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"), "JPEG XL"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0[\1\2]\0"), "ICO"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(.{0,512}<)?svg[\s>]", re.DOTALL | re.IGNORECASE), "SVG"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype )?html", re.IGNORECASE), "an HTML page"),
)
_SNIFF_BYTES = 1024
PIXEL_BYTES = 4
"""Bytes a pixel of an RGB picture in Pillow's memory."""


class ImageInfo(NamedTuple):
    """Describes a picture that passed every check that needs no decoding."""

    format: str
    """A member of ``SUPPORTED_IMAGES``."""
    width: int
    """Pixels as the model will see it: EXIF orientation applied."""
    height: int
    orientation: int
    """EXIF's number, 1 to 8, of the turn that decoding has to apply."""


def inspect_image(data: Data, limits: MediaLimits, item: str) -> ImageInfo:
    """Finds format and size of a picture and checks them against ``limits``. Takes some microseconds.

    Raises UnsupportedMedia (415) for other files, BadRequest (400) for a damaged header or a tiny picture,
    PayloadTooLarge (413) over the byte or pixel limit.
    """
    if len(data) > limits.media_max_bytes:
        raise too_many_bytes(item, limits.media_max_bytes)
    format = _format(data, item)
    try:
        width, height, orientation = read_header(format, data)
    except HeaderError:
        raise damaged(item) from None
    check_size(width, height, limits, item)
    if orientation >= 5:
        width, height = height, width
    return ImageInfo(format, width, height, orientation)


def _format(data: Data, item: str) -> str:
    if not data:
        raise problem(BadRequest, item, DAMAGED, "the image is empty (0 bytes)")
    head = data[:_SNIFF_BYTES]
    for magic, name in _SUPPORTED:
        if magic.match(head):
            return name
    found = next((name for magic, name in _UNSUPPORTED if magic.match(head)), None)
    what = "the data is not an image" if found is None else f"the file type is not supported: {found}"
    raise problem(UnsupportedMedia, item, UNSUPPORTED, f"{what}; send one of {', '.join(SUPPORTED_IMAGES)}")


def type_of(data: Data) -> str | None:
    """Returns the name of a frequent file type; None for others."""
    head = data[:_SNIFF_BYTES]
    return next((name for magic, name in (*_SUPPORTED, *_UNSUPPORTED) if magic.match(head)), None)


def check_size(
    width: int, height: int, limits: MediaLimits, item: str, *, whole: str = "the picture", frame: str = "the picture"
) -> None:
    """Checks the size of a picture, or of each ``frame`` of a ``whole``. Raises PayloadTooLarge or BadRequest."""
    pixels = width * height
    if pixels > limits.media_max_pixels:
        reason = (
            f"{frame} has {pixels:,} pixels ({width} x {height}); "
            f"the limit is {limits.media_max_pixels:,} (--media-max-pixels)"
        )
        raise problem(PayloadTooLarge, item, TOO_LARGE, reason)
    if min(width, height) < limits.media_min_side_px:
        reason = (
            f"{whole} is {width} x {height} pixels; "
            f"each side must have at least {limits.media_min_side_px} (--media-min-side-px)"
        )
        raise problem(BadRequest, item, TOO_SMALL, reason)
