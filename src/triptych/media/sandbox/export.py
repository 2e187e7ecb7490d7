"""Hands a decoder's result over to its parent."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from msgspec.structs import replace
from PIL import Image

from triptych.media.formats.sniff import PIXEL_BYTES
from triptych.media.sandbox import shared
from triptych.media.sandbox.believe import Expected
from triptych.media.sandbox.pixels import address_of
from triptych.media.sandbox.wire import INLINE_BYTES, Done

BLOCK_BYTES = 256 << 20
"""Size of Pillow's memory blocks: a picture of up to 64 megapixels lies in one piece."""


class Differs(Exception):
    """Raised if the decoded medium differs from the facts that were read of it before."""


def keep_memory() -> None:
    """Lets Pillow keep a picture's memory for the next one: fresh pages take a third of a large one's time."""
    core = Image.core  # type: ignore[attr-defined]
    core.set_block_size(BLOCK_BYTES)
    core.set_blocks_max(1)


class Lent(NamedTuple):
    """Memory that the parent lends for the result."""

    fd: int
    size_bytes: int


def exported(made: Any, expected: Expected, lent: Lent | None) -> Done:
    """Returns the answer that hands over a picture or an array, in ``lent`` if it is large.

    Raises Differs for another shape than the parent expects, OSError if the machine lacks memory.
    """
    is_picture = isinstance(made, Image.Image)
    shape = (made.height, made.width) if is_picture else made.shape
    if not expected.is_of(shape):
        raise Differs
    if is_picture:
        return _picture(made, lent)
    dtype = made.dtype.name
    if made.nbytes <= INLINE_BYTES:
        return Done(shape=shape, dtype=dtype, data=made.tobytes())
    return _written(Done(shape=shape, dtype=dtype), memoryview(made).cast("B"), lent)


def _picture(picture: Image.Image, lent: Lent | None) -> Done:
    width, height = picture.size
    done = Done(shape=(height, width))
    if width * height * 3 <= INLINE_BYTES:
        return replace(done, data=picture.tobytes())
    size_bytes = width * height * PIXEL_BYTES
    try:
        with address_of(picture) as address:
            return _written(done, memoryview((ctypes.c_ubyte * size_bytes).from_address(address)).cast("B"), lent)
    except ValueError:  # in several pieces
        return _written(done, memoryview(picture.tobytes("raw", "RGBX")), lent)


def _written(done: Done, data: memoryview, lent: Lent | None) -> Done:
    """Writes ``data`` into the lent memory. Mapping the memory and copying would take a third longer."""
    if lent is None or len(data) > lent.size_bytes:
        raise Differs
    shared.fill(lent.fd, data)
    return replace(done, lent=True)
