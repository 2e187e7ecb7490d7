import random

import pytest

from triptych.planes.request.frames import (
    LARGE_BYTES,
    FrameError,
    FrameReader,
    Type,
    call_head,
    pack,
    pack_call,
    split_call,
)

FRAMES = [(Type.CALL, 1, b"x"), (Type.DATA, 2, b""), (Type.END, 0xFFFF_FFFF, b"y" * 5000), (Type.PING, 0, b"")]
STREAM = b"".join(pack(*frame) for frame in FRAMES)


def feed(reader, *chunks):
    return [frame for chunk in chunks for frame in reader.feed(chunk)]


def test_a_whole_stream_at_once():
    assert feed(FrameReader(10_000), STREAM) == FRAMES


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 10, 17, 4096])
def test_cut_anywhere_it_gives_the_same_frames(size):
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert feed(FrameReader(10_000), *chunks) == FRAMES


def test_random_cuts():
    rng = random.Random(2)
    stream = STREAM * 20
    for _ in range(50):
        cuts = sorted(rng.randrange(len(stream)) for _ in range(30))
        chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        assert feed(FrameReader(10_000), *chunks) == FRAMES * 20


def test_a_frame_over_the_limit_is_refused_by_its_header_alone():
    with pytest.raises(FrameError, match="limit is 10"):
        feed(FrameReader(10), pack(Type.DATA, 1, bytes(11))[:9])


def test_a_limit_that_a_frame_raises_holds_for_the_next_in_the_same_bytes():
    reader = FrameReader(10)
    got = []
    for frame in reader.feed(pack(Type.HELLO, 0, b"hi") + pack(Type.CALL, 1, bytes(1000))):
        reader.limit_bytes = 2000
        got.append(frame)
    assert [frame[0] for frame in got] == [Type.HELLO, Type.CALL]


def test_calls_are_put_together_and_taken_apart():
    frame = pack_call(5, "generate", b"payload")
    [(kind, stream, payload)] = feed(FrameReader(100), frame)
    assert (kind, stream, split_call(payload)) == (Type.CALL, 5, ("generate", b"payload"))


@pytest.mark.parametrize("payload", [b"", b"\x05abc", b"\x02\xff\xfe!", b"\x01"])
def test_malformed_calls(payload):
    with pytest.raises(FrameError):
        split_call(payload)


def test_an_empty_request_is_a_request():
    [(_, _, payload)] = feed(FrameReader(100), pack_call(1, "x", b""))
    assert split_call(payload) == ("x", b"")


@pytest.mark.parametrize("chunk", [1 << 16, 100_003, 1 << 18, 10 << 20])
def test_large_frames_come_whole_with_others_around_them(chunk):
    small = pack(Type.DATA, 1, b"small")
    contents = [bytes([at]) * (LARGE_BYTES + extra) for at, extra in enumerate((1, 0, 700_000, 3))]
    stream = b"".join(small + pack(Type.DATA, at, content) for at, content in enumerate(contents)) + small[:7]
    reader = FrameReader(10 << 20)
    found = feed(reader, *(stream[at : at + chunk] for at in range(0, len(stream), chunk)), small[7:])
    assert [one for one in found if len(one[2]) == 5] == [(Type.DATA, 1, b"small")] * 5
    assert [one for one in found if len(one[2]) > 5] == [(Type.DATA, at, one) for at, one in enumerate(contents)]


def test_a_large_request_is_split_without_a_copy():
    request = bytes(2 * LARGE_BYTES)
    [(_, _, payload)] = feed(FrameReader(10 << 20), call_head(3, "generate", len(request)) + request)
    endpoint, found = split_call(payload)
    assert (endpoint, type(found), found == request) == ("generate", memoryview, True)
