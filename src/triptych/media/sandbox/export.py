"""The decoder's side of handing over what it made."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from PIL import Image

from triptych.media.image import PIXEL_BYTES
from triptych.media.sandbox import shared
from triptych.media.sandbox.pixels import address_of
from triptych.media.sandbox.wire import INLINE_BYTES, Done

_BLOCK_BYTES = 256 << 20
"""A picture of up to 64 megapixels lies in one piece."""


def keep_memory() -> None:
    """Let Pillow keep a picture's memory for the next: a third of the time of a large one goes into fresh pages."""
    core = Image.core  # type: ignore[attr-defined]
    core.set_block_size(_BLOCK_BYTES)
    core.set_blocks_max(1)


def exported(made: Any) -> tuple[Done, list[int]]:
    """The answer that hands over a picture or an array, and the descriptor that goes with it. Raises MemoryError."""
    if isinstance(made, Image.Image):
        return _picture(made)
    shape, dtype = made.shape, made.dtype.name
    if made.nbytes <= INLINE_BYTES:
        return Done(shape=shape, dtype=dtype, data=made.tobytes()), []
    fd = _written(memoryview(made).cast("B"))
    return Done(shape=shape, dtype=dtype, shared_bytes=made.nbytes), [fd]


def _picture(picture: Image.Image) -> tuple[Done, list[int]]:
    width, height = picture.size
    if width * height * 3 <= INLINE_BYTES:
        return Done(shape=(height, width), data=picture.tobytes()), []
    size_bytes = width * height * PIXEL_BYTES
    try:
        with address_of(picture) as address:
            fd = _written(memoryview((ctypes.c_ubyte * size_bytes).from_address(address)).cast("B"))
    except ValueError:  # in several pieces
        fd = _written(memoryview(picture.tobytes("raw", "RGBX")))
    return Done(shape=(height, width), shared_bytes=size_bytes), [fd]


def _written(data: memoryview) -> int:
    """Written, not mapped and copied: that takes a third less."""
    try:
        return shared.filled(data)
    except OSError as error:  # over the limit on files' sizes, or the machine has no more
        raise MemoryError(os.strerror(error.errno or 0)) from error
