import ctypes
import gc
import os
import random
import threading
from pathlib import Path
from unittest.mock import patch

import pytest

from support.loops import until
from triptych.aio import memory
from triptych.aio.memory import MIB, SMALL_BYTES, Growing, fresh

os_close = os.close


def is_mapped(address: int) -> bool:
    ranges = (line.split(maxsplit=1)[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


@pytest.mark.parametrize("expected", [0, 100, 3 * MIB, 9 * MIB])
def test_growing_memory_holds_what_was_written(expected):
    rng = random.Random(1)
    pieces = [rng.randbytes(rng.choice([0, 1, 7, 100_000, 700_001])) for _ in range(20)]
    growing = Growing(expected)
    for piece in pieces:
        growing.write(piece)
    whole = b"".join(pieces)
    assert len(growing) == len(whole) > SMALL_BYTES
    taken = growing.taken()
    assert taken == whole
    assert taken.readonly


def test_few_bytes_are_copied_to_plain_bytes():
    growing = Growing()
    growing.write(b"abc")
    assert growing.taken() == b"abc"
    assert isinstance(growing.taken(), bytes)


async def test_memory_is_unmapped_with_its_last_view():
    size = 300 * MIB
    view = fresh(size)
    view[-1] = 7
    middle = ctypes.addressof(ctypes.c_char.from_buffer(view, size // 2))
    part = view[size - 2 :]
    del view
    gc.collect()
    assert bytes(part) == b"\0\7"
    assert is_mapped(middle)
    del part
    await until(lambda: not is_mapped(middle), "the memory is given back")


async def test_a_descriptor_is_closed_by_another_thread():
    fd = os.memfd_create("here")
    closers = []
    with patch.object(memory.os, "close", lambda one: (closers.append(threading.get_ident()), os_close(one))):
        memory.close_elsewhere(fd)
        await until(lambda: closers, "it is closed")
    assert closers != [threading.get_ident()]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("make", [bytes, memoryview, bytearray, lambda data: memoryview(b"xyz" + data)[3:]])
def test_find_returns_the_first_index(make):
    rng = random.Random(7)
    for _ in range(300):
        plain = bytes(rng.choices(b"ab,", (30, 30, 1), k=rng.randrange(120)))
        begin, end = rng.randrange(-3, 130), rng.randrange(-3, 130)
        inside = plain[max(0, begin) : max(0, end)].find(b",")
        wanted = -1 if inside < 0 or end <= begin else inside + max(0, begin)
        assert memory.find(make(plain), b",", begin, max(0, end)) == wanted
        assert memory.find(make(plain), b",") == plain.find(b",")


def test_find_searches_read_only_memory():
    growing = memory.Growing()
    for piece in (b"a" * memory.MIB, b"b" * memory.MIB, b'"'):
        growing.write(piece)
    taken = growing.taken()
    assert taken.readonly
    assert memory.find(taken, b"b") == memory.MIB
    assert memory.find(taken, b'"') == 2 * memory.MIB
    assert memory.find(taken[1:], b'"') == 2 * memory.MIB - 1
    assert memory.find(taken, b"c") == -1
