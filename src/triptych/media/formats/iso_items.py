"""Reads the items of a file in ISO's format for pictures: their types, their places in the file and their relations
(ISO/IEC 14496-12, 8.11; 23008-12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import NamedTuple

from triptych.contracts.media import Data
from triptych.media.formats.header import HeaderError
from triptych.media.formats.iso_tracks import boxes

MAX_PROPERTIES = 1024
MAX_ITEMS = 4096
"""Maximum number of entries of each kind that are read (some ms); a picture in tiles has hundreds."""
_FULL = 4
"""Bytes of version and flags that begin the content of a full box."""
_IN_FILE, _IN_META = 0, 1


class Property(NamedTuple):
    kind: bytes
    begin: int
    """The place of the content in the file."""
    end: int


class Items:
    """Reads the items of ``data``. Raises HeaderError, struct.error and IndexError for damage, also in each method."""

    def __init__(self, data: Data) -> None:
        self._data = data
        begin, end = first(data, 0, len(data), b"meta")
        self._meta = begin + _FULL, end
        self._properties = first(data, *self._meta, b"iprp")
        self._known = list(islice(boxes(data, *first(data, *self._properties, b"ipco")), MAX_PROPERTIES))

    @property
    def primary(self) -> int:
        begin, _ = first(self._data, *self._meta, b"pitm")
        return self._number(begin + _FULL, wide=self._data[begin] > 0)

    def properties(self, item: int) -> Iterator[Property]:
        """Returns the properties of an item, in the order in which they apply."""
        for index in self._associated(item):
            if 0 < index <= len(self._known):
                yield Property(*self._known[index - 1])

    def kind(self, item: int) -> bytes:
        """Returns the item's type, four letters such as ``hvc1`` or ``grid``."""
        if item not in self._kinds:
            raise HeaderError
        return self._kinds[item]

    @cached_property
    def _kinds(self) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        begin, end = first(self._data, *self._meta, b"iinf")
        at = begin + _FULL + (4 if self._data[begin] else 2)
        for name, entry, _ in islice(boxes(self._data, at, end), MAX_ITEMS):
            version = self._data[entry]
            if name == b"infe" and version >= 2:
                kind_at = entry + _FULL + (4 if version > 2 else 2) + 2
                kind = bytes(self._data[kind_at : kind_at + 4])
                found.setdefault(self._number(entry + _FULL, wide=version > 2), kind)
        return found

    def referred(self, item: int, kind: bytes) -> list[int]:
        """Returns the items that ``item`` refers to by ``kind``, in order: by ``dimg`` the tiles of a grid."""
        return next((targets for source, targets in self._references(kind) if source == item), [])

    def referring(self, item: int, kind: bytes) -> list[int]:
        """Returns the items that refer to ``item`` by ``kind``: by ``auxl`` its transparency, depth and the like."""
        return [source for source, targets in self._references(kind) if item in targets]

    def _references(self, kind: bytes) -> Iterator[tuple[int, list[int]]]:
        for _, begin, end in (box for box in boxes(self._data, *self._meta) if box[0] == b"iref"):
            wide = self._data[begin] > 0
            size = 4 if wide else 2
            for name, at, _ in islice(boxes(self._data, begin + _FULL, end), MAX_ITEMS):
                if name == kind:
                    (count,) = struct.unpack_from(">H", self._data, at + size)
                    form = f">{min(count, MAX_ITEMS)}{'I' if wide else 'H'}"
                    yield self._number(at, wide), list(struct.unpack_from(form, self._data, at + size + 2))

    def content(self, item: int) -> bytes:
        """Returns the bytes of ``item``, at most as many as the file has."""
        parts = []
        left = len(self._data)
        if item not in self._places:
            raise HeaderError
        for method, begin, length in self._places[item]:
            if method == _IN_META:
                begin += first(self._data, *self._meta, b"idat")[0]
            elif method != _IN_FILE:
                raise HeaderError
            part = bytes(self._data[begin : begin + length if length else len(self._data)])
            left -= len(part)
            if len(part) < length or left < 0:
                raise HeaderError
            parts.append(part)
        return b"".join(parts)

    @cached_property
    def _places(self) -> dict[int, list[tuple[int, int, int]]]:
        """Item -> (construction method, offset, bytes or 0 for the rest) of each of its parts."""
        data = self._data
        found: dict[int, list[tuple[int, int, int]]] = {}
        at, end = first(data, *self._meta, b"iloc")
        version = data[at]
        offset_size, length_size = divmod(data[at + _FULL], 16)
        base_size, index_size = divmod(data[at + _FULL + 1], 16)
        size = (index_size if version else 0) + offset_size + length_size
        at += _FULL + 2
        count = self._number(at, wide=version > 1)
        at += 4 if version > 1 else 2
        for _ in range(min(count, MAX_ITEMS)):
            item = self._number(at, wide=version > 1)
            at += 4 if version > 1 else 2
            method = data[at + 1] & 15 if version else _IN_FILE
            at += (2 if version else 0) + 2
            base = int.from_bytes(data[at : at + base_size])
            (extents,) = struct.unpack_from(">H", data, at + base_size)
            at += base_size + 2
            parts = found.setdefault(item, [])
            for part in range(at, min(at + extents * size, end), size or 1):
                offset_at = part + size - offset_size - length_size
                offset = int.from_bytes(data[offset_at : offset_at + offset_size])
                parts.append((method, base + offset, int.from_bytes(data[offset_at + offset_size : part + size])))
            at += extents * size
        return found

    def _associated(self, item: int) -> Iterator[int]:
        """Yields the indices of the properties of ``item``, counted from 1."""
        data = self._data
        for kind, begin, end in boxes(data, *self._properties):
            if kind != b"ipma":
                continue
            wide_id, wide_index = data[begin] > 0, data[begin + 3] & 1
            (items,) = struct.unpack_from(">I", data, begin + _FULL)
            at = begin + _FULL + 4
            for _ in range(min(items, MAX_ITEMS)):
                if at >= end:
                    break
                found = self._number(at, wide_id)
                at += 4 if wide_id else 2
                form = f">{data[at]}{'H' if wide_index else 'B'}"
                if found == item:
                    mask = 0x7FFF if wide_index else 0x7F
                    yield from (index & mask for index in struct.unpack_from(form, data, at + 1))
                at += 1 + struct.calcsize(form)

    def _number(self, at: int, wide: bool) -> int:
        (number,) = struct.unpack_from(">I" if wide else ">H", self._data, at)
        return int(number)


def first(data: Data, begin: int, end: int, kind: bytes) -> tuple[int, int]:
    """Returns (begin, end) of the content of the first box of ``kind``. Raises HeaderError."""
    found = next(((at, to) for name, at, to in boxes(data, begin, end) if name == kind), None)
    if found is None:
        raise HeaderError
    return found
