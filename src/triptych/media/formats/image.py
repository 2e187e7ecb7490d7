"""Decodes a checked file to an RGB picture, as the model is to see it."""

from __future__ import annotations

import importlib
import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from triptych.config.media import MediaLimits
from triptych.contracts.errors import UnsupportedMedia
from triptych.contracts.media import Picture
from triptych.media.errors import UNSUPPORTED, damaged, problem, too_many_scans
from triptych.media.formats.header import HeaderError
from triptych.media.formats.heic import decode_heic
from triptych.media.formats.image_header import MAX_SCANS, has_many_scans
from triptych.media.formats.pixels import PixelsNotServed, to_rgb
from triptych.media.formats.sniff import PIXEL_BYTES, ImageInfo, inspect_image

# The readers themselves are used rather than Image.open, which tries more formats and applies Pillow's own,
# process-wide pixel limit before ours.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # media are decoded side by side already

# Pillow raises these on damaged files. Its documentation names none; they are taken from its readers' code.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,  # Where warnings are made errors.
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_DEPTH_AT = 24


def decode_image(medium: Picture, limits: MediaLimits, item: str = "image") -> Image.Image:
    """Decodes ``medium`` to mode RGB: first frame, upright by its EXIF orientation, over white.

    Blocks for about 10 ms a megapixel: run it in a thread. Checks the bytes by itself (format, ``limits``)
    and relies on nothing the medium states. Raises BadRequest (``media_damaged``), PayloadTooLarge or
    UnsupportedMedia, and nothing else for any data.
    """
    data = bytes(medium.data)
    info = inspect_image(data, limits, item)
    if info.format == "JPEG" and has_many_scans(data):
        raise too_many_scans(item, "the picture", MAX_SCANS)
    try:
        return _decode(data, info, item)
    except PixelsNotServed as kind:
        raise problem(UnsupportedMedia, item, UNSUPPORTED, f"pixels of this kind are not served: {kind}") from None
    except (*_DAMAGE, HeaderError):
        raise damaged(item) from None


def _av(item: str) -> Any:
    """Imports PyAV, when the first HEIC picture comes."""
    try:
        return importlib.import_module("av")
    except ImportError:
        reason = "HEIC is not read here: PyAV is not installed, which this package's extra `video` brings"
        raise problem(UnsupportedMedia, item, UNSUPPORTED, reason) from None


def _loaded(data: bytes, info: ImageInfo, item: str) -> Image.Image:
    """Decodes the picture in RGB, in the orientation of the file."""
    if info.format == "HEIC":
        av = _av(item)
        try:
            return decode_heic(data, av)
        except av.FFmpegError:
            raise ValueError from None
    if info.format == "AVIF" and not AvifImagePlugin.SUPPORTED:
        raise problem(UnsupportedMedia, item, UNSUPPORTED, "AVIF is not read here: Pillow was built without it")
    with _READERS[info.format](BytesIO(data)) as file:
        if file.size != _stored(info):  # Pillow reads another size than was checked: do not let it allocate that.
            raise ValueError
        file.load()
        return to_rgb(file, depth=data[_PNG_DEPTH_AT] if info.format == "PNG" else 8)


def _decode(data: bytes, info: ImageInfo, item: str) -> Image.Image:
    picture = _loaded(data, info, item)
    if picture.size != _stored(info):
        raise ValueError
    method = _UPRIGHT.get(info.orientation)
    return picture if method is None else picture.transpose(method)


def _stored(info: ImageInfo) -> tuple[int, int]:
    return (info.height, info.width) if info.orientation >= 5 else (info.width, info.height)


def picture_bytes(picture: Image.Image) -> int:
    """Returns the bytes of a decoded picture."""
    return picture.width * picture.height * PIXEL_BYTES
