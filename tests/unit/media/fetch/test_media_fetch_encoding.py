"""Answers with a Content-Encoding, against a real server on loopback."""

import gzip
import random
import tracemalloc
import zlib

import pytest

from support.odd_site import MAX_BYTES, PICTURE, fetching, get, refusal
from triptych.contracts.errors import PayloadTooLarge

PACKED = gzip.compress(PICTURE, mtime=0)
RAW = zlib.compressobj(wbits=-15)


SERVED = [
    ("identity", PICTURE),
    ("", PICTURE),
    ("none", PICTURE),
    ("utf-8", PICTURE),
    ("binary", PICTURE),
    ("aws-chunked", PICTURE),
    ("gzip", PACKED),
    ("GZIP ", PACKED),
    ("x-gzip", PACKED),
    ("aws-chunked, gzip", PACKED),
    ("gzip, identity", PACKED),
    ("deflate", zlib.compress(PICTURE)),
    ("deflate", RAW.compress(PICTURE) + RAW.flush()),
    ("deflate, gzip", gzip.compress(zlib.compress(PICTURE))),
    ("gzip", gzip.compress(PICTURE[:50]) + gzip.compress(PICTURE[50:]) + bytes(512)),
]


@pytest.mark.parametrize(("coding", "sent"), SERVED, ids=[f"{at}-{coding}" for at, (coding, _) in enumerate(SERVED)])
async def test_content_encodings(coding, sent):
    async with fetching() as (site, fetcher):
        site.handle_all, site.headers = sent, {"Content-Encoding": coding}
        assert await get(fetcher, site.url()) == PICTURE


@pytest.mark.parametrize("sent", [PACKED[:-9], PACKED[:5], b"", PACKED[:20] + b"x" + PACKED[21:], PICTURE], ids=len)
async def test_damaged_compression_is_refused(sent):
    async with fetching() as (site, fetcher):
        site.handle_all, site.headers = sent, {"Content-Encoding": "gzip"}
        error = await refusal(fetcher, site.url())
        assert (error.code, "damaged or cut off" in error.message) == ("media_fetch_failed", True)


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip"])
async def test_the_byte_limit_holds_before_and_after_inflating(coding):
    def packed(size):
        data = bytes(size)
        for _ in coding.split(","):
            data = gzip.compress(data)
        return data

    async with fetching() as (site, fetcher):
        site.headers = {"Content-Encoding": coding}
        site.handle_all = packed(MAX_BYTES)
        assert await get(fetcher, site.url()) == bytes(MAX_BYTES)
        for size in (MAX_BYTES + 1, 300 << 20):
            site.handle_all = packed(size)
            tracemalloc.start()
            error = await refusal(fetcher, site.url(), PayloadTooLarge)
            peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert (error.code, peak_bytes < 4 << 20) == ("media_too_large", True)
        site.handle_all = gzip.compress(random.Random(1).randbytes(MAX_BYTES + 1))
        assert (await refusal(fetcher, site.url(), PayloadTooLarge)).code == "media_too_large"


async def test_a_file_of_nothing_but_members_ends():
    async with fetching() as (site, fetcher):
        site.handle_all, site.headers = gzip.compress(b"") * 2000, {"Content-Encoding": "gzip"}
        assert "damaged" in (await refusal(fetcher, site.url())).message
