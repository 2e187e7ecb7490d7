"""Makes Pillow pictures over shared memory, through the Arrow C data interface, which Pillow reads without a copy.

The structures are those of https://arrow.apache.org/docs/format/CDataInterface.html, as far as a flat array of bytes
needs them. Pillow keeps an RGB picture row by row, with four bytes a pixel, of which the last is unused.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from triptych.aio.memory import Mapping
from triptych.media.formats.sniff import PIXEL_BYTES


class _Schema(ctypes.Structure):
    pass


class _Array(ctypes.Structure):
    pass


_ReleaseSchema = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Schema))
_ReleaseArray = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Array))
_Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.c_void_p),
    ("release", _ReleaseSchema),
    ("private_data", ctypes.c_void_p),
]
_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.c_void_p),
    ("release", _ReleaseArray),
    ("private_data", ctypes.c_void_p),
]
_python = ctypes.PyDLL(None)  # not ctypes.pythonapi, whose functions' types any library may set
_capsule = _python.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

_pointer = _python.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)

_numbers = itertools.count(1)
_held: dict[int, tuple[Any, Mapping]] = {}
"""Pictures in use, by number: the object that each refers to, and its memory."""


@_ReleaseSchema  # type: ignore[untyped-decorator]
def _release_schema(schema: Any) -> None:
    schema.contents.release = _ReleaseSchema()


@_ReleaseArray  # type: ignore[untyped-decorator]
def _release_array(array: Any) -> None:
    array.contents.release = _ReleaseArray()
    _held.pop(array.contents.private_data)


@_Destructor  # type: ignore[untyped-decorator]
def _drop_array(capsule: int) -> None:
    """Does nothing: Pillow keeps the capsule for as long as the picture, and releases it then."""
    array = _Array.from_address(_pointer(capsule, b"arrow_array"))
    if array.release:
        array.release(ctypes.pointer(array))


class _Bytes:
    """A flat Arrow array of the first ``size_bytes`` of ``memory``."""

    def __init__(self, memory: Mapping, size_bytes: int) -> None:
        self._number = next(_numbers)
        self._buffers = (ctypes.c_void_p * 2)(None, memory.address)
        self._schema = _Schema(format=b"C", release=_release_schema)
        self._array = _Array(
            length=size_bytes, n_buffers=2, buffers=self._buffers, release=_release_array, private_data=self._number
        )
        _held[self._number] = (self, memory)

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return (
            _capsule(ctypes.addressof(self._schema), b"arrow_schema", None),
            _capsule(ctypes.addressof(self._array), b"arrow_array", ctypes.cast(_drop_array, ctypes.c_void_p)),
        )

    def drop(self) -> None:
        """Gives the memory back where no picture was made of it."""
        _held.pop(self._number, None)


def picture_over(memory: Mapping, width: int, height: int) -> Image.Image:
    """Returns an RGB picture over ``memory``, which it keeps alive."""
    source = _Bytes(memory, width * height * PIXEL_BYTES)
    try:
        return Image.fromarrow(source, "RGB", (width, height))
    except BaseException:
        source.drop()
        raise


@contextmanager
def address_of(picture: Image.Image) -> Iterator[int]:
    """Returns the address of the pixels of an RGB picture, four bytes each, valid within the block.

    Raises ValueError for a picture whose memory is in several pieces.
    """
    schema, array = picture.__arrow_c_array__()
    outer = _Array.from_address(_pointer(id(array), b"arrow_array"))
    # Pillow gives a list of pixels, each of four bytes, which are its only child.
    flat = _Array.from_address(ctypes.cast(outer.children, ctypes.POINTER(ctypes.c_void_p))[0])
    yield flat.buffers[1] + flat.offset
    del schema, array
