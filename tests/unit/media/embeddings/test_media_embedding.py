"""Precomputed embeddings as files: what is read of them, and what is refused and why."""

import json
import math
import struct

import pytest

from support.embeddings import Raw, floats, grid, numbers, safetensors, with_header
from triptych.contracts.errors import BadRequest, UnsupportedMedia
from triptych.contracts.media import MAX_NUMBERS, PrecomputedEmbedding
from triptych.media.embeddings.embedding import embedding_medium, is_pt
from triptych.media.embeddings.safetensors import MAX_HEADER_BYTES, MAX_TENSORS
from triptych.media.embeddings.values import CHUNK_BYTES, all_finite, convert
from triptych.media.naming import content_hash

ITEM = "messages[0].content[0].image_embeds"
VALUES = floats(4, 8)


def medium_of(file, kind="image"):
    return embedding_medium(kind, file, ITEM)


def refusal(file, error=BadRequest):
    with pytest.raises(error) as caught:
        medium_of(file)
    assert caught.value.param == ITEM
    assert caught.value.message.startswith(f"{ITEM}: ")
    return caught.value


def entry(dtype="F32", shape=(1, 2), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize("name", ["image_embeds", "embeds", "whatever"])
@pytest.mark.parametrize("shape", [(4, 8), (1, 4, 8)])
def test_a_single_tensor_is_the_embedding(name, shape):
    medium = medium_of(safetensors(**{name: VALUES._replace(shape=shape)}))
    assert isinstance(medium, PrecomputedEmbedding)
    assert (medium.shape, medium.dtype) == ((4, 8), "float32")
    assert (medium.kind, medium.data, medium.metadata) == ("image", VALUES.data, {})


@pytest.mark.parametrize("name", ["image_embeds", "embeds"])
@pytest.mark.parametrize("sides", [grid(1, 4, 4), grid(1, 4, 4, dtype="I32"), grid(1, 4, 4, batched=True)])
@pytest.mark.parametrize("first", [True, False])
def test_several_are_the_embedding_and_what_goes_with_it(name, sides, first):
    tensors = [("image_grid_thw", sides), (name, VALUES)]
    medium = medium_of(safetensors(**dict(tensors if first else reversed(tensors))))
    assert medium.metadata == {"image_grid_thw": (1, 4, 4)}
    assert medium.data == VALUES.data


def test_the_name_is_that_of_the_values_and_their_meaning_whatever_the_file():
    one = medium_of(safetensors(embeds=VALUES, image_grid_thw=grid(1, 4, 4)))
    same = medium_of(safetensors(image_grid_thw=grid(1, 4, 4, dtype="I32"), image_embeds=VALUES))
    assert one.content_hash == same.content_hash
    others = [
        content_hash("image", VALUES.data),
        content_hash("image", safetensors(embeds=VALUES)),
        medium_of(safetensors(embeds=VALUES)).content_hash,
        medium_of(safetensors(embeds=VALUES), "video").content_hash,
        medium_of(safetensors(embeds=VALUES._replace(shape=(8, 4)))).content_hash,
        medium_of(safetensors(embeds=VALUES, image_grid_thw=grid(1, 2, 8))).content_hash,
        medium_of(safetensors(embeds=VALUES, other_grid_thw=grid(1, 4, 4))).content_hash,
        medium_of(safetensors(embeds=Raw("F16", (4, 8), bytes(range(64))))).content_hash,
        medium_of(safetensors(embeds=Raw("BF16", (4, 8), bytes(range(64))))).content_hash,
    ]
    assert len({one.content_hash, *others}) == 1 + len(others)


@pytest.mark.parametrize("dtype", ["F32", "F64"])
@pytest.mark.parametrize("times", [(0.25,), tuple(index / 4 for index in range(MAX_NUMBERS))])
def test_times_go_with_an_embedding_too(dtype, times):
    medium = medium_of(safetensors(embeds=VALUES, timestamps=numbers(*times, dtype=dtype)), "video")
    assert medium.metadata == {"timestamps": times}


def test_embeddings_of_other_times_are_others():
    grids = {"video_grid_thw": grid(2, 2, 8), "video_embeds": VALUES}
    times = [(0.25, 1.25), (0.25, 1.2500000001), (0.25, 1.5), (1.25, 0.25), (0.25,), (0.25, 1.25, 2.0)]
    made = [medium_of(safetensors(**grids, timestamps=numbers(*one)), "video") for one in times]
    made += [medium_of(safetensors(**grids, second_per_grid_ts=numbers(one)), "video") for one in (0.25, 1.0)]
    made.append(medium_of(safetensors(**grids), "video"))
    assert len({one.content_hash for one in made}) == len(made)
    again = medium_of(safetensors(timestamps=numbers(0.25, 1.25, dtype="F32"), **grids), "video")
    assert again.content_hash == made[0].content_hash, "the same numbers, in another file"


def test_metadata_of_the_file_and_spaces_behind_the_header_are_allowed():
    header = json.dumps({"__metadata__": {"format": "pt"}, "x": entry()}).encode() + b"   "
    medium = medium_of(with_header(header, bytes(8)))
    assert (medium.shape, medium.dtype) == ((1, 2), "float32")


HOSTILE = {
    "no length": b"\0" * 7,
    "a length and nothing": struct.pack("<Q", 10),
    "a huge length": struct.pack("<Q", 2**63) + b"{}",
    "a length beyond the file": struct.pack("<Q", 100) + b'{"x":1}',
    "a length within the header": struct.pack("<Q", 5) + b'{"x":1}' + bytes(8),
    "not JSON": with_header(b"{x}"),
    "not UTF-8": with_header(b'{"\xff": 1}'),
    "nested deeply": with_header(b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    "an endless number": with_header(b'{"x":' + b"1" * 5000 + b"}"),
    "no object as an entry": with_header({"x": [1]}),
    "a name twice": with_header(
        b'{"x":' + json.dumps(entry()).encode() + b',"x":' + json.dumps(entry()).encode() + b"}"
    ),
    "a key twice": with_header(b'{"x":{"dtype":"F32","dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}', bytes(8)),
    "an unknown key": with_header({"x": entry(more=1)}, bytes(8)),
    "a name of nothing": with_header({"": entry()}, bytes(8)),
    "a name that hides": with_header({"a\u202eb\n": entry()}, bytes(8)),
    "metadata of another kind": with_header({"__metadata__": 1, "x": entry()}, bytes(8)),
    "a negative side": with_header({"x": entry(shape=(-1, -2))}, bytes(8)),
    "a side of 4,000 digits": with_header({"x": entry(shape=(10**4000, 0), offsets=(0, 0))}),
    "a side that is true": with_header({"x": entry(shape=(True, 2))}, bytes(8)),
    "a side with a fraction": with_header({"x": entry(shape=(1.5, 2))}, bytes(8)),
    "a product beyond 64 bits": with_header({"x": entry(shape=(2**32, 2**32, 2))}, bytes(8)),
    "a product that wraps to the right one": with_header({"x": entry(shape=(2**63, 2**63))}, bytes(8)),
    "NaN as a side": with_header(b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
    "many dimensions": with_header({"x": entry(shape=(1,) * 5000)}, bytes(4)),
    "negative offsets": with_header({"x": entry(offsets=(-8, 0))}, bytes(8)),
    "offsets backwards": with_header({"x": entry(offsets=(8, 0))}, bytes(8)),
    "offsets beyond the file": with_header({"x": entry(offsets=(8, 16))}, bytes(8)),
    "three offsets": with_header({"x": entry(offsets=(0, 8, 16))}, bytes(8)),
    "fewer bytes than the shape": with_header({"x": entry(shape=(2, 2))}, bytes(8)),
    "a truncated file": safetensors(x=VALUES)[:-1],
    "more than the tensors": safetensors(x=VALUES) + b"\0",
    "overlapping tensors": with_header({"embeds": entry(), "y": entry("I64", (1,), (0, 8))}, bytes(8)),
    "a gap": with_header({"embeds": entry(), "y": entry("I64", (1,), (16, 24))}, bytes(24)),
    "many tensors": safetensors(**{f"t{number}": grid(1) for number in range(MAX_TENSORS + 1)}),
    "a large header": with_header(b'{"x":1}' + b" " * MAX_HEADER_BYTES),
    "another dtype": safetensors(x=Raw("U8", (4, 8), bytes(32))),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case):
    file = HOSTILE[case]
    error = refusal(file, UnsupportedMedia if file[8:9] != b"{" else BadRequest)
    assert error.code == ("media_unsupported" if file[8:9] != b"{" else "media_damaged")
    assert len(error.message) < 400


def test_every_beginning_of_a_file_is_refused():
    file = safetensors(embeds=floats(2, 2), image_grid_thw=grid(1, 2, 4))
    for length in range(len(file)):
        with pytest.raises((BadRequest, UnsupportedMedia)):
            medium_of(file[:length])


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": floats(8)}, r"of shape \[8\]; an embedding is \[tokens, width\]"),
        ({"x": floats(2, 4, 8)}, "an embedding is"),
        ({"x": floats(0, 8)}, "an embedding is"),
        ({"x": floats(4, 0)}, "an embedding is"),
        ({"x": floats(1, 1, 4, 8)}, "an embedding is"),
        ({"x": grid(1, 2, 3, batched=True)}, "of dtype int64; an embedding is of float32"),
        ({"x": VALUES, "image_grid_thw": grid(1, 4, 4)}, "one must be called image_embeds or embeds"),
        ({"embeds": VALUES, "image_embeds": VALUES}, "one must be called image_embeds or embeds"),
        ({"video_embeds": VALUES, "image_grid_thw": grid(1, 4, 4)}, "one must be called image_embeds or embeds"),
        ({"x": Raw("F64", (4, 8), bytes(256))}, "of dtype float64; an embedding is of float32"),
        ({"embeds": VALUES, "image_grid_thw": Raw("F16", (3,), bytes(6))}, "of int32, int64, float32, float64"),
        ({"embeds": VALUES, "image_grid_thw": grid(*range(MAX_NUMBERS + 1))}, "of 1 to 512 numbers"),
        ({"embeds": VALUES, "image_grid_thw": grid()}, "of 1 to 512 numbers"),
        ({"embeds": VALUES, "image_grid_thw": grid(1, 2, 3, 4)._replace(shape=(2, 2))}, "of 1 to 512 numbers"),
        ({"embeds": VALUES, "timestamps": numbers(0.5, math.nan)}, "'timestamps' holds a value that is infinite or"),
        ({"embeds": VALUES, "timestamps": numbers(math.inf, dtype="F32")}, "'timestamps' holds a value that is"),
    ],
)
def test_tensors_that_are_no_embedding_are_refused(tensors, words):
    error = refusal(safetensors(**tensors))
    assert error.code == "media_embedding_refused"
    with pytest.raises(BadRequest, match=words):
        raise error


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "the file type is PNG"),
        (b"PK\x03\x04" + bytes(40), "by file: URL only"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(40), "by file: URL only"),
        (b"something else entirely", "not a safetensors file"),
    ],
)
def test_other_files_are_named(file, words):
    assert words in refusal(file, UnsupportedMedia).message


def test_nothing_is_no_embedding():
    assert refusal(b"").code == "media_damaged"


def test_a_safetensors_file_is_never_taken_for_one_of_torch():
    """Whatever the length of its header says as bytes."""
    header = json.dumps({"x": entry()}).encode().ljust(0x280)
    file = with_header(header, bytes(8))
    assert file[:2] == b"\x80\x02"
    assert not is_pt(file)
    medium = medium_of(file)
    assert (medium.shape, medium.dtype) == ((1, 2), "float32")


# Values.

INFINITE = {
    "float32": ["0000807f", "000080ff", "0100807f", "ffffffff", "0000c07f"],
    "float16": ["007c", "00fc", "017c", "ffff", "007e"],
    "bfloat16": ["807f", "80ff", "817f", "ffff", "c07f"],
}
FINITE = {
    "float32": ["00000000", "00000080", "ffff7f7f", "ffff7fff", "ffffff00", "0000007f", "ffffff7e"],
    "float16": ["0000", "0080", "ff7b", "fffb", "ff03", "ff3f"],
    "bfloat16": ["0000", "0080", "7f7f", "7fff", "ff00", "007f", "ff7e"],
}


@pytest.mark.parametrize("dtype", INFINITE)
def test_values_that_are_not_finite_are_found_wherever_they_are(dtype):
    good = b"".join(map(bytes.fromhex, FINITE[dtype]))
    many = good * (CHUNK_BYTES // len(good) + 9)
    size = len(good) // len(FINITE[dtype])
    assert all_finite(many, dtype)
    for word in INFINITE[dtype]:
        for at in (0, size, len(many) - size, CHUNK_BYTES, CHUNK_BYTES - size):
            assert not all_finite(many[:at] + bytes.fromhex(word) + many[at + size :], dtype), (word, at)
        assert all_finite(good + good, dtype)


@pytest.mark.parametrize(("dtype", "name"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_an_embedding_with_such_a_value_is_refused(dtype, name):
    data = bytes.fromhex(FINITE[dtype][0] + INFINITE[dtype][0])
    assert refusal(safetensors(x=Raw(name, (1, 2), data))).code == "media_embedding_refused"


def test_all_of_float16_and_bfloat16_as_torch_says():
    torch = pytest.importorskip("torch")
    for dtype in ("float16", "bfloat16"):
        for number in range(1 << 16):
            data = number.to_bytes(2, "little")
            if number % 97 == 0 or number & 0x7C00 == 0x7C00:
                value = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
                assert all_finite(data, dtype) == bool(torch.isfinite(value).all()), (dtype, hex(number))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
def test_another_dtype_is_what_torch_makes_of_it(dtype, wanted):
    torch = pytest.importorskip("torch")
    values = torch.randn(33).to(getattr(torch, dtype))
    into = bytearray(33 * (4 if wanted == "float32" else 2))
    convert(bytes(values.untyped_storage()), dtype, wanted, memoryview(into))
    assert bytes(into) == bytes(values.to(getattr(torch, wanted)).untyped_storage())


def test_values_beyond_the_other_dtype_are_refused():
    pytest.importorskip("torch")
    with pytest.raises(BadRequest, match="values that float16"):
        convert(struct.pack("<f", 1e6), "float32", "float16", memoryview(bytearray(2)))
