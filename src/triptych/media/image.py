"""The worker's side: from a checked file to an RGB picture, the way the model is to see it."""

from __future__ import annotations

import asyncio
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

from PIL import GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from triptych.cache.lru import ByteLru
from triptych.cache.single_flight import SingleFlight
from triptych.config.media import MIB, MediaLimits
from triptych.contracts.errors import Unavailable, UnsupportedMedia
from triptych.contracts.request import Medium
from triptych.media.errors import UNSUPPORTED, damaged, problem
from triptych.media.sniff import ImageInfo, inspect_image

# The readers themselves rather than Image.open: that one tries more formats and speaks up with Pillow's own,
# process-wide pixel limit before ours does.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}

# What Pillow raises on damaged files. Its documentation names none; these are those of its readers' code.
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
_WHITE = (255, 255, 255)
PIXEL_BYTES = 4
"""Of an RGB picture in Pillow's memory."""


def decode_image(medium: Medium, limits: MediaLimits, item: str = "image") -> Image.Image:
    """Decode ``medium`` to mode RGB: first frame, upright by its EXIF orientation, over white.

    Blocks for about 10 ms a megapixel: run it in a thread. Checks the bytes by itself (format, ``limits``)
    and believes nothing the medium states. Raises BadRequest (``media_damaged``), PayloadTooLarge or
    UnsupportedMedia, and nothing else for any data.
    """
    if medium.kind != "image":
        raise problem(UnsupportedMedia, item, UNSUPPORTED, f"a picture is needed here, not {medium.kind}")
    info = inspect_image(medium.data, limits, item)
    try:
        return _decode(medium.data, info)
    except _DAMAGE:
        raise damaged(item) from None


def _decode(data: bytes, info: ImageInfo) -> Image.Image:
    with _READERS[info.format](BytesIO(data)) as file:
        stored = (info.height, info.width) if info.orientation >= 5 else (info.width, info.height)
        if file.size != stored:  # Pillow reads another size than was checked: do not let it allocate that.
            raise ValueError
        file.load()
        picture = _to_rgb(file)
    method = _UPRIGHT.get(info.orientation)
    return picture if method is None else picture.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # 16-bit grey: keep the high byte; Pillow's convert clips instead of scaling.
        return Image.frombytes("L", image.size, image.tobytes(), "raw", "L;16").convert("RGB")
    if not image.has_transparency_data:
        # A copy also where it is RGB already: the file's own picture is tied to its reader.
        return image.convert("RGB")
    layered = image.convert("RGBA")
    over_white = Image.new("RGB", image.size, _WHITE)
    over_white.paste(layered, mask=layered.getchannel("A"))
    return over_white


class ImageDecoder:
    """Decodes pictures in threads of its own, each content once at a time, and keeps those used last.

    For one event loop. ``cache_bytes`` bounds what is kept (``PIXEL_BYTES`` a pixel; 0: nothing).
    Pictures are keyed by their content hash, which the caller must be able to trust, and shared: nobody may
    change one. Work waiting for a thread is bounded by the worker's own bound on its requests.
    """

    def __init__(self, limits: MediaLimits, *, cache_bytes: int = 256 * MIB, threads: int = 2) -> None:
        self._limits = limits
        self.cache: ByteLru[str, Image.Image] = ByteLru(cache_bytes)
        self._flights: SingleFlight[str, Image.Image] = SingleFlight("media-decode")
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="triptych-decode")
        self._closed = False

    async def decode(self, medium: Medium) -> Image.Image:
        """``decode_image`` of ``medium``, from the cache where it is there.

        Raises what ``decode_image`` raises, Unavailable after ``close``. Cancelling touches no other caller;
        a decode that nobody waits for any more is dropped, at once if it has not begun.
        """
        if self._closed:
            raise Unavailable("the worker is shutting down; try again", code="shutting_down")
        picture = self.cache.get(medium.content_hash)
        if picture is not None:
            return picture
        return await self._flights.run(medium.content_hash, lambda: self._decode(medium))

    async def close(self) -> None:
        """Drop waiting work and the cache; a running decode ends by itself. May be called twice."""
        self._closed = True
        await self._flights.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.cache.clear()

    async def _decode(self, medium: Medium) -> Image.Image:
        loop = asyncio.get_running_loop()
        picture = await loop.run_in_executor(self._threads, decode_image, medium, self._limits)
        self.cache.put(medium.content_hash, picture, picture.width * picture.height * PIXEL_BYTES)
        return picture
