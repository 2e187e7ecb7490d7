import time
import tracemalloc
from urllib.parse import quote

import pytest

from media_files import data_url
from triptych.contracts.errors import BadRequest, PayloadTooLarge
from triptych.media.byte_limit import ByteLimit
from triptych.media.data_url import CHUNK_CHARS, decode_data_url, is_data_url

ITEM = "messages[0].content[1].image_url"
BYTES = bytes(range(256))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (data_url(BYTES), BYTES),
        (data_url(BYTES, ""), BYTES),
        (data_url(BYTES, "image/png;charset=utf-8"), BYTES),
        ("DATA:image/png;BASE64,QUI=", b"AB"),
        ("data:image/png;base64,QUI%3D", b"AB"),
        ("data:image/png;base64,QQ==", b"A"),
        ("data:image/png;base64,", b""),
        ("data:,a%20b", b"a b"),
        ("data:application/octet-stream," + quote(BYTES), BYTES),
    ],
)
def test_decodes(url, expected):
    assert is_data_url(url)
    assert decode_data_url(url, ByteLimit(1000), ITEM) == expected


@pytest.mark.parametrize("extra", range(-4, 5))
def test_long_data_is_decoded_in_chunks_without_a_seam(extra):
    data = (BYTES * (3 * CHUNK_CHARS // 256))[: 2 * CHUNK_CHARS + extra]
    assert decode_data_url(data_url(data), ByteLimit(len(data)), ITEM) == data
    shift = "x" * (extra + 4)
    text = "data:," + shift + "%41" * CHUNK_CHARS
    assert decode_data_url(text, ByteLimit(3 * CHUNK_CHARS), ITEM) == shift.encode() + b"A" * CHUNK_CHARS


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64", "comma"),
        ("data:" + "x" * 2000 + ",QUI=", "comma"),
        ("data:image/png;base64,QUI", "padding"),
        ("data:image/png;base64,QUI==", "padding"),
        ("data:image/png;base64,QU=I", "padding"),
        ("data:image/png;base64,QUI=QUI=", "padding"),
        ("data:image/png;base64,====", "padding"),
        ("data:image/png;base64,Q-_=", "character outside"),
        ("data:image/png;base64,Q UI", "character outside"),
        ("data:image/png;base64,QUI\n", "character outside"),
        ("data:image/png;base64,QUI€", "character outside"),
        ("data:,€", "outside ASCII"),
    ],
)
def test_refuses_what_the_standard_does_not_allow(url, reason):
    with pytest.raises(BadRequest, match=reason) as caught:
        decode_data_url(url, ByteLimit(1000), ITEM)
    assert caught.value.message.startswith(f"{ITEM}: ")
    assert (caught.value.param, caught.value.code) == (ITEM, "invalid_media_url")


@pytest.mark.parametrize("make", [data_url, lambda data: "data:," + quote(data)])
def test_the_limit_is_exact(make):
    url = make(bytes(1000))
    assert len(decode_data_url(url, ByteLimit(1000), ITEM)) == 1000
    with pytest.raises(PayloadTooLarge, match=r"999 bytes \(--media-max-bytes\)") as caught:
        decode_data_url(url, ByteLimit(999), ITEM)
    assert (caught.value.status, caught.value.code) == (413, "media_too_large")


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:,"])
def test_a_huge_one_is_refused_before_decoding_or_copying(head):
    url = head + "A" * (64 << 20)
    tracemalloc.start()
    try:
        start = time.perf_counter()
        with pytest.raises(PayloadTooLarge):
            decode_data_url(url, ByteLimit(20 << 20), ITEM)
        took_s, peak_bytes = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000
    assert took_s < 1
