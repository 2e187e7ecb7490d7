"""Corrects the sizes in the header of a WAV file whose writer, such as one to a pipe, did not know them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MAX_CHUNKS = 1000
"""Maximum number of chunks of a file that are read."""
UNSTATED_BYTES = 1 << 30
"""Stated sizes from here on, in a smaller file, mean that the writer did not know the size: 0x7FFFFFFF, 2,000,000,000
and 0xFFFFFFFF are in use. No accepted file is so large."""
_HEAD = 8
"""Bytes of a chunk's name and size."""


class CutOff(Exception):
    """Raised for a file that ends before its samples do."""


class _Chunk(NamedTuple):
    name: bytes
    begin: int
    """The position at which the content begins."""
    size: int
    """The stated size in bytes."""


def with_sizes(data: bytes) -> bytes:
    """Returns the WAV file ``data`` with the real size of its samples, if its header does not state that.

    A stated size of 0 with samples behind it means that the samples go on to the end of the file. So does a size that
    is larger than the file, unless the file was complete once: then the stated sizes of the file and of its samples
    agree, and are possible sizes of a file. Raises CutOff for such a file.
    """
    samples = next((chunk for chunk in _chunks(data, 12) if chunk.name == b"data"), None)
    if samples is None:
        return data  # libsndfile finds the samples, or that there are none
    there = len(data) - samples.begin
    if samples.size > there:
        whole = int.from_bytes(data[4:8], "little") + _HEAD
        if samples.size < UNSTATED_BYTES and samples.begin + samples.size <= whole < UNSTATED_BYTES:
            raise CutOff
    elif samples.size or not there or _are_chunks(data, samples.begin):
        return data
    sizes = [(len(data) - _HEAD).to_bytes(4, "little"), there.to_bytes(4, "little")]
    return b"".join([data[:4], sizes[0], data[8 : samples.begin - 4], sizes[1], data[samples.begin :]])


def _chunks(data: bytes, at: int) -> Iterator[_Chunk]:
    for _ in range(MAX_CHUNKS):
        if at + _HEAD > len(data):
            return
        size = int.from_bytes(data[at + 4 : at + _HEAD], "little")
        yield _Chunk(data[at : at + 4], at + _HEAD, size)
        at += _HEAD + size + size % 2


def _are_chunks(data: bytes, at: int) -> bool:
    """Tells whether only further chunks follow from ``at`` to the end, so that samples of size 0 really are none."""
    end = at
    for chunk in _chunks(data, at):
        if not chunk.name.isascii() or not chunk.name.decode("ascii").isprintable():
            return False
        end = chunk.begin + chunk.size
    return end in (len(data), len(data) - 1)  # the last may have a byte of padding
