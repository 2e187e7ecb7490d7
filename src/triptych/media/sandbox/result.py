"""Makes the parent's own objects of a decoder's result, after ``believe`` has checked it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from triptych.aio.memory import Mapping
from triptych.media.sandbox.pixels import picture_over
from triptych.media.sandbox.wire import Done


def picture_of(done: Done, memory: Mapping | None) -> Image.Image:
    """Returns the picture, in RGB."""
    height, width = done.shape
    if memory is None:
        return Image.frombytes("RGB", (width, height), done.data)
    return picture_over(memory, width, height)


def array_of(done: Done, memory: Mapping | None) -> Any:
    """Returns the array, writable."""
    dtype = np.dtype(done.dtype)
    buffer = bytearray(done.data) if memory is None else memory.view(math.prod(done.shape) * dtype.itemsize)
    return np.frombuffer(buffer, dtype).reshape(done.shape)
