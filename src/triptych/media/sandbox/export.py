"""The decoder's side of handing over what it made."""

from __future__ import annotations

import ctypes
import os
from typing import Any, NamedTuple

from msgspec.structs import replace
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


class Lent(NamedTuple):
    """Memory that the parent has no other use for."""

    fd: int
    size_bytes: int


def exported(made: Any, lent: Lent | None) -> tuple[Done, list[int]]:
    """The answer that hands over a picture or an array, in ``lent`` where it fits there.

    And the descriptor that goes with it, where memory had to be made. Raises MemoryError.
    """
    if isinstance(made, Image.Image):
        return _picture(made, lent)
    shape, dtype = made.shape, made.dtype.name
    if made.nbytes <= INLINE_BYTES:
        return Done(shape=shape, dtype=dtype, data=made.tobytes()), []
    return _written(Done(shape=shape, dtype=dtype), memoryview(made).cast("B"), lent)


def _picture(picture: Image.Image, lent: Lent | None) -> tuple[Done, list[int]]:
    width, height = picture.size
    done = Done(shape=(height, width))
    if width * height * 3 <= INLINE_BYTES:
        return replace(done, data=picture.tobytes()), []
    size_bytes = width * height * PIXEL_BYTES
    try:
        with address_of(picture) as address:
            return _written(done, memoryview((ctypes.c_ubyte * size_bytes).from_address(address)).cast("B"), lent)
    except ValueError:  # in several pieces
        return _written(done, memoryview(picture.tobytes("raw", "RGBX")), lent)


def _written(done: Done, data: memoryview, lent: Lent | None) -> tuple[Done, list[int]]:
    """Written, not mapped and copied: that takes a third less."""
    done = replace(done, shared_bytes=len(data))
    try:
        if lent is None or len(data) > lent.size_bytes:
            return done, [shared.filled(data)]
        shared.fill(lent.fd, data)
        return replace(done, lent=True), []
    except OSError as error:  # over the limit on files' sizes, or the machine has no more
        raise MemoryError(os.strerror(error.errno or 0)) from error
