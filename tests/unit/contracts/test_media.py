"""Media on the wire: each type with its own fields, told apart by its tag."""

import msgspec
import pytest

from triptych.contracts.media import FILE_TYPES, Medium, Picture, PrecomputedEmbedding, Sound, Video

NAME = "ab" * 32
PICTURE = Picture(content_hash=NAME, format="PNG", width=4, height=2, metadata={"image_grid_thw": (1, 2, 2)})
VIDEO = Video(content_hash=NAME, width=4, height=2, num_frames=9, fps=3.0, frame_indices=(0, 4))
SOUND = Sound(content_hash=NAME, num_samples=100, sample_rate=8_000, decode_rate=16_000)
EMBEDDING = PrecomputedEmbedding(kind="audio", content_hash=NAME, data=bytes(8), shape=(2, 1), dtype="float32")
MEDIA = [PICTURE, VIDEO, SOUND, EMBEDDING]


def ids(medium):
    return type(medium).__name__


@pytest.mark.parametrize("medium", MEDIA, ids=ids)
def test_each_type_crosses_the_wire_as_itself(medium):
    [got] = msgspec.msgpack.decode(msgspec.msgpack.encode([medium]), type=list[Medium])
    assert type(got) is type(medium)
    assert got == medium


@pytest.mark.parametrize("medium", MEDIA, ids=ids)
def test_data_are_a_view_of_the_message(medium):
    message = msgspec.msgpack.encode(msgspec.structs.replace(medium, data=bytes(1 << 20)))
    got = msgspec.msgpack.decode(message, type=Medium)
    assert isinstance(got.data, memoryview)
    assert got.data.obj is message


@pytest.mark.parametrize(
    "message",
    [
        {"content_hash": NAME},
        {"type": "smell", "content_hash": NAME},
        {"type": "picture"},
        {"type": "sound", "content_hash": NAME, "num_samples": "many"},
        {"type": "precomputed", "content_hash": NAME, "shape": [1, 1], "dtype": "float32"},
        {"type": "precomputed", "content_hash": NAME, "kind": "smell", "shape": [1, 1], "dtype": "float32"},
        {"type": "precomputed", "content_hash": NAME, "kind": "image", "shape": [1, 1, 1], "dtype": "float32"},
        {"type": "picture", "content_hash": NAME, "metadata": {"x": [0] * 513}},
    ],
    ids=str,
)
def test_what_is_no_medium_is_refused(message):
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Medium)


def test_fields_of_another_type_say_nothing():
    odd = msgspec.msgpack.encode({"type": "picture", "content_hash": NAME, "num_samples": 7, "shape": [1, 1]})
    assert msgspec.msgpack.decode(odd, type=Medium) == Picture(content_hash=NAME)


def test_kinds_are_those_of_the_types():
    assert {kind: one.kind for kind, one in FILE_TYPES.items()} == {kind: kind for kind in ("image", "video", "audio")}
    assert [medium.kind for medium in MEDIA] == ["image", "video", "audio", "audio"]


@pytest.mark.parametrize("medium", MEDIA, ids=ids)
def test_nothing_is_unknown_of_a_whole_one(medium):
    assert medium.unknown == ""


@pytest.mark.parametrize(
    ("medium", "words"),
    [
        (Picture(content_hash=NAME, width=4), "the size of this image"),
        (Video(content_hash=NAME, height=4, frame_indices=(0,)), "the size of this video"),
        (Video(content_hash=NAME, width=4, height=4), "which frames of this video"),
        (Sound(content_hash=NAME, sample_rate=8_000), "the length of this sound"),
    ],
)
def test_what_is_unknown_is_said(medium, words):
    assert words in medium.unknown
