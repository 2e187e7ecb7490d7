"""What a decoder made, as the parent's own objects."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from triptych.media.image import PIXEL_BYTES
from triptych.media.sandbox.pixels import picture_over
from triptych.media.sandbox.wire import Done
from triptych.memory import Mapping


def picture_of(done: Done, memory: Mapping | None) -> Image.Image:
    """In RGB. Raises ValueError for memory that is not what the answer says."""
    height, width = done.shape
    if memory is None:
        return Image.frombytes("RGB", (width, height), done.data)
    return picture_over(_enough(memory, width * height * PIXEL_BYTES), width, height)


def array_of(done: Done, memory: Mapping | None) -> Any:
    """Writable. Raises ValueError for memory that is not what the answer says."""
    dtype = np.dtype(done.dtype)
    size_bytes = math.prod(done.shape) * dtype.itemsize
    buffer = bytearray(done.data) if memory is None else _enough(memory, size_bytes).view(size_bytes)
    return np.frombuffer(buffer, dtype).reshape(done.shape)


def _enough(memory: Mapping, size_bytes: int) -> Mapping:
    if memory.size_bytes < size_bytes:
        raise ValueError("the memory is smaller than what is said to lie in it")
    return memory
