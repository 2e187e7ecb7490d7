import base64
import time
import tracemalloc
from urllib.parse import quote

import pytest

from support.media_files import data_url
from triptych.contracts.errors import BadRequest, PayloadTooLarge
from triptych.media.byte_limit import ByteLimit
from triptych.media.fetch.data_url import CHUNK_CHARS, LongUrl, decode_data_url, is_data_url, of_base64

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
        ("data:image/png;base64,QUI", b"AB"),
        ("data:image/png;base64,QQ", b"A"),
        ("data:image/png;base64,Q UI\n", b"AB"),
        ("data:image/png;base64, Q\r\nU\tI\f= \n", b"AB"),
        ("data:image/png;base64,Q%20U%0d%0AI%3D", b"AB"),
        ("data:image/png;base64,Q\nQ=\n=\n", b"A"),
        ("data:image/png;base64, \n", b""),
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


def lines(data, separator, every=76):
    text = base64.b64encode(data).decode()
    return "data:;base64," + separator.join(text[at : at + every] for at in range(0, len(text), every))


@pytest.mark.parametrize("separator", ["\n", "\r\n", "    "])
@pytest.mark.parametrize("form", [str, lambda url: LongUrl("", memoryview(url.encode()))])
@pytest.mark.parametrize("end", ["", "=", "=\n\n", "==" + " " * CHUNK_CHARS, "\n" * CHUNK_CHARS + "=="])
def test_long_data_in_lines(separator, form, end):
    data = (BYTES * (2 * CHUNK_CHARS // 256))[: 2 * CHUNK_CHARS - (3 - end.count("=")) % 3]
    data = data[: len(data) - len(data) % 3] + b"xy"[: 3 - end.count("=")] if "=" in end else data
    url = lines(data, separator).rstrip("=") + end
    assert decode_data_url(form(url), ByteLimit(len(data)), ITEM) == data
    with pytest.raises(PayloadTooLarge):
        decode_data_url(form(url), ByteLimit(len(data) - 1), ITEM)


@pytest.mark.parametrize("form", [str, lambda url: LongUrl("", memoryview(url.encode()))])
@pytest.mark.parametrize("fault", ["*", "=", "-", "QQ=="])
@pytest.mark.parametrize("at", [0, 1, CHUNK_CHARS - 1, CHUNK_CHARS, CHUNK_CHARS + 1, 2 * CHUNK_CHARS - 3])
def test_a_fault_anywhere_in_long_data_is_found(form, fault, at):
    text = "A" * at + fault + "A" * (3 * CHUNK_CHARS - at)
    with pytest.raises(BadRequest, match="base64"):
        decode_data_url(form("data:;base64," + text), ByteLimit(1 << 20), ITEM)


@pytest.mark.parametrize(
    ("data", "url"),
    [
        ("QUI=", "data:;base64,QUI="),
        ("data:audio/wav;base64,QUI=", "data:audio/wav;base64,QUI="),
        ("DATA:,x", "DATA:,x"),
        ("", "data:;base64,"),
    ],
)
def test_a_field_of_base64_may_be_a_data_url(data, url):
    assert of_base64(data) == url
    long = of_base64(LongUrl("data:;base64,", memoryview(data.encode())))
    assert isinstance(long, LongUrl)
    assert long.whole() == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64", "comma"),
        ("data:" + "x" * 2000 + ",QUI=", "comma"),
        ("data:image/png;base64,Q", "padding"),
        ("data:image/png;base64,QUJDR\n", "padding"),
        ("data:image/png;base64,QQ=", "padding"),
        ("data:image/png;base64,QUJD=", "padding"),
        ("data:image/png;base64,QUI=\nQ", "padding"),
        ("data:image/png;base64,QUI==", "padding"),
        ("data:image/png;base64,QU=I", "padding"),
        ("data:image/png;base64,QUI=QUI=", "padding"),
        ("data:image/png;base64,====", "padding"),
        ("data:image/png;base64,Q-_=", "URL-safe kind, with - and _"),
        ("data:image/png;base64,Q_+/", "URL-safe kind, with - and _"),
        ("data:image/png;base64,Q*UI", "character outside"),
        ("data:image/png;base64,Q\vUI", "character outside"),
        ("data:image/png;base64,Q\u00a0UI", "character outside"),
        ("data:image/png;base64,https://a.example/b", "not a URL"),
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
        start = time.thread_time()
        with pytest.raises(PayloadTooLarge):
            decode_data_url(url, ByteLimit(20 << 20), ITEM)
        took_s, peak_bytes = time.thread_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000
    assert took_s < 1
