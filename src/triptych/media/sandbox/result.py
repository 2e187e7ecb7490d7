"""What a decoder made, as the parent's own objects."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from triptych.media.image import PIXEL_BYTES
from triptych.media.sandbox import shared
from triptych.media.sandbox.pixels import picture_over
from triptych.media.sandbox.wire import Done


def picture_of(done: Done, fd: int | None) -> Image.Image:
    """In RGB. Raises OSError and ValueError for memory that is not what the answer says."""
    height, width = done.shape
    if fd is None:
        return Image.frombytes("RGB", (width, height), done.data)
    return picture_over(shared.mapped(fd, width * height * PIXEL_BYTES), width, height)


def array_of(done: Done, fd: int | None) -> Any:
    """Writable. Raises OSError and ValueError for memory that is not what the answer says."""
    dtype = np.dtype(done.dtype)
    size_bytes = math.prod(done.shape) * dtype.itemsize
    buffer = bytearray(done.data) if fd is None else shared.mapped(fd, size_bytes, writable=True).view(size_bytes)
    return np.frombuffer(buffer, dtype).reshape(done.shape)
