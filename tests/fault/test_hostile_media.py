"""Media made to harm: each is refused in bounded time and memory by its field, and the next request is answered."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import time
import zlib
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import pytest
from aiohttp.abc import AbstractResolver

from support import hostile_files as files
from support.background import served
from support.checkpoints import image_part, picture, picture_url
from support.deployment import deployment
from support.hostile_site import SECRET, hostile_site
from support.loops import SOON_S, until
from triptych.config.media import MediaLimits
from triptych.media.fetch import connect, guard

FIELD = "messages[0].content[0].image_url"
LEAKS = (SECRET, "127.0.0.", "::1", "Traceback", "PIL", "aiohttp", "Errno", "zlib", "cannot identify", "object at 0x")
MAX_GROWTH_BYTES = 400 << 20
"""Beside two decoding threads with a picture of the pixel limit each, 150 MB."""
LIMITS = MediaLimits(
    media_allow_private=True,
    media_max_bytes=1 << 20,
    media_read_timeout_s=1.0,
    media_total_timeout_s=30.0,
)
HURRIED = MediaLimits(media_allow_private=True, media_read_timeout_s=30.0, media_total_timeout_s=0.3)
"""The one time limit is so far from the other that a slow machine cannot take one for the other."""


def ask(url):
    return [image_part(url), {"type": "text", "text": "what?"}]


def check(answer, status, *words):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == FIELD, error
    assert error["message"].startswith(f"{FIELD}: "), error
    for word in words:
        assert word in error["message"], error
    for leak in LEAKS:
        assert leak not in answer.text, f"{leak!r} in {answer.text}"
    return error


@pytest.fixture(scope="module")
def demo():
    with served(limits=MediaLimits(media_max_bytes=4 << 20)) as one:
        yield one


def peak_bytes():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


ZERO_TEXT = zlib.compress(bytes(64 << 20), 9)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'

REFUSED = {
    "png bomb": (files.png_says(60_000, 60_000), 413, "--media-max-pixels"),
    "png of wide sides": (files.png_says(65_535, 65_535), 413, "65535 x 65535"),
    "png of the largest sides": (files.png_says(2**31 - 1, 2**31 - 1), 413, "--media-max-pixels"),
    "gif of wide sides": (files.gif_says(65_535, 65_535), 413, "65535 x 65535"),
    "gif frame larger than its screen": (files.gif_says(16, 16, (65_535, 65_535)), 413, "--media-max-pixels"),
    "jpeg of wide sides": (files.jpeg_says(65_500, 65_500), 413, "--media-max-pixels"),
    "jpeg of the largest sides": (files.jpeg_says(65_535, 65_535), 413, "--media-max-pixels"),
    "jpeg of 20,000 scans": (files.jpeg_of_scans(2000, 2000, 20_000), 413, "100 scans"),
    "webp of wide sides": (files.webp_says(16_000, 16_000), 413, "--media-max-pixels"),
    "animated webp of the largest sides": (files.webp_says(2**24, 2**24, flags=2), 413, "--media-max-pixels"),
    "webp frame larger than its canvas": (files.webp_frame_says(16_383, 16_383), 400, "damaged"),
    "animated webp without frames": (files.webp_says(64, 64, flags=2), 400, "damaged"),
    "a line of pixels": (files.png_says(65_535, 4), 415, "200 times"),
    "a png of much less than it says": (files.png_says(6_900, 6_900), 400, "damaged"),
    "a jpeg cut inside of its header": (files.encoded("JPEG")[:100], 400, "damaged"),
    "1 x 1 png": (files.encoded("PNG", 1, 1), 400, "--media-min-side-px"),
    "1 x 1 gif": (files.encoded("GIF", 1, 1), 400, "--media-min-side-px"),
    "1 x 1 jpeg": (files.encoded("JPEG", 1, 1), 400, "--media-min-side-px"),
    "1 x 1 webp": (files.encoded("WEBP", 1, 1), 400, "--media-min-side-px"),
    "nothing": (b"", 400, "empty"),
    "magic only": (files.PNG_MAGIC, 400, "damaged"),
    "zeros": (bytes(4096), 415, "not an image"),
    "svg": (SVG, 415, "SVG"),
    "svg behind a comment": (b"<!-- " + b"x" * 200 + b" -->" + SVG, 415, "SVG"),
    "bitmap of wide sides": (files.bmp_says(60_000, -60_000), 413, "--media-max-pixels"),
    "a bitmap of much less than it says": (files.bmp_says(6_900, 6_900), 400, "damaged"),
    "tiff of wide sides": (files.tiff_says(60_000, 60_000), 413, "--media-max-pixels"),
    "tiff of the largest sides": (files.tiff_says(2**32 - 1, 2**32 - 1), 413, "--media-max-pixels"),
    "a tiff of much less than it says": (files.tiff_says(6_900, 6_900), 400, "damaged"),
    "a tiff whose strips cover it often": (files.tiff_says(6_900, 6_900, 500_000), 400, "damaged"),
    "avif of wide sides": (files.avif_says(60_000, 60_000), 413, "--media-max-pixels"),
    "avif without pixels": (files.encoded("AVIF").replace(b"mdat", b"free")[:-40], 400, "damaged"),
    "gif and page": (b"GIF89a/*" + b"<html><script>*/alert(1)</script></html>", 400, "damaged"),
    "jpeg and page": (b"\xff\xd8\xff<html><script>alert(1)</script></html>", 400, "damaged"),
    "png and svg": (files.PNG_MAGIC + SVG, 400, "damaged"),
    "pdf and png": (b"%PDF-1.7\n" + files.encoded("PNG"), 415, "PDF"),
    "zip and png": (b"PK\3\4" + files.encoded("PNG"), 415, "not an image"),
    "png in jpeg's clothes": (b"\xff\xd8\xff\xe0" + files.encoded("PNG"), 400, "damaged"),
    "larger than the limit": (files.encoded("PNG") + bytes(4 << 20), 413, "--media-max-bytes"),
}

SERVED = {
    "a png with 64 MiB of compressed text": files.png_with(files.png_chunk(b"zTXt", b"a\0\0" + ZERO_TEXT)),
    "a png with a colour profile of 64 MiB": files.png_with(files.png_chunk(b"iCCP", b"a\0\0" + ZERO_TEXT)),
    "a gif of 2,000 frames": files.animation("GIF", 2000),
    "a webp of 300 frames": files.animation("WEBP", 300),
    "a png of 300 frames": files.animation("PNG", 300),
    "a bitmap": files.encoded("BMP"),
    "a tiff": files.encoded("TIFF"),
    "an avif": files.encoded("AVIF"),
    "an avif of 100 frames": files.animation("AVIF", 100),
    "an avif that is larger by its header than by its pixels": files.avif_says(6_900, 6_900),
    "a png with a zip behind it": files.encoded("PNG") + b"PK\5\6" + bytes(18),
}
"""What is a sound picture besides: the rest is not looked at. Refusing it would be as good."""


def data_url(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("name", [*REFUSED, *SERVED])
def test_a_file(demo, name):
    data, status, word = REFUSED.get(name) or (SERVED[name], 400, "damaged")
    url = data_url(data)
    with contextlib.suppress(OSError):  # where it may not be written, the peak is that of all tests so far
        Path("/proc/self/clear_refs").write_text("5")
    before, begun = peak_bytes(), time.monotonic()
    answer = demo.chat(ask(url))
    took_s, growth_bytes = time.monotonic() - begun, peak_bytes() - before
    if name in REFUSED or answer.status_code != 200:
        check(answer, status, word)
    assert took_s < SOON_S
    assert growth_bytes < MAX_GROWTH_BYTES, f"{growth_bytes >> 20} MiB"
    assert demo.chat(ask(picture_url(56, 56))).status_code == 200


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("data:image/png;base64,AAAAA", 400, "invalid_media_url"),
        ("data:image/png;base64,AAAA=", 400, "invalid_media_url"),
        ("data:image/png;base64,A===", 400, "invalid_media_url"),
        ("data:image/png;base64,AA==AA==", 400, "invalid_media_url"),
        ("data:image/png;base64,AA-_", 400, "invalid_media_url"),
        ("data:image/png;base64,\uff21AAA", 400, "invalid_media_url"),
        ("data:;base64,%", 400, "invalid_media_url"),
        ("data:image/svg+xml," + SVG.decode(), 415, "media_unsupported"),
        ("file:///etc/passwd", 400, "media_file_refused"),
        ("FILE:/etc/passwd", 400, "media_file_refused"),
        ("file://127.0.0.1/etc/passwd", 400, "media_file_refused"),
        ("ftp://example.com/x.png", 400, "invalid_media_url"),
        ("gopher://example.com/x.png", 400, "invalid_media_url"),
        ("http+unix://%2Fvar%2Frun%2Fdocker.sock/", 400, "invalid_media_url"),
        ("//example.com/x.png", 400, "invalid_media_url"),
        ("http:/example.com/x.png", 400, "invalid_media_url"),
        ("http://example.com\\@127.0.0.1/", 400, "invalid_media_url"),
        ("http://example.com@127.0.0.1/", 400, "invalid_media_url"),
        ("http://127.0.0.1\t.example.com/", 400, "invalid_media_url"),
        ("http://１２７.0.0.1/", 400, "media_address_refused"),
        ("http://127。0。0。1/", 400, "media_address_refused"),
        ("http://[::ffff:127.0.0.1]/", 400, "media_address_refused"),
        ("http://2130706433/", 400, "media_address_refused"),
        ("http://0x7f000001/", 400, "media_address_refused"),
        ("http://localhost:1/", 400, "media_address_refused"),
    ],
)
def test_a_url(demo, url, status, code):
    begun = time.monotonic()
    assert check(demo.chat(ask(url)), status)["code"] == code
    assert time.monotonic() - begun < SOON_S
    assert demo.chat(ask(picture_url(56, 56))).status_code == 200


SITE = {
    "/endless": (413, "1,048,576 bytes (--media-max-bytes)"),
    "/endless_chunks": (413, "1,048,576 bytes (--media-max-bytes)"),
    "/crumbs": (400, "chunks of less than 128 bytes"),
    "/endless_extension": (400, "not the medium"),
    "/extensions": (400, "not the medium"),
    "/endless_trailers": (400, "not"),
    "/interim": (400, "interim answers"),
    "/endless_head": (400, "not valid HTTP"),
    "/endless_line": (400, "not valid HTTP"),
    "/silent": (400, "--media-read-timeout-s"),
    "/silent_body": (400, "--media-read-timeout-s"),
    "/lies": (400, "broke off"),
    "/nonsense": (400, "not valid HTTP"),
    "/two_lengths": (400, "not valid HTTP"),
    "/text": (415, "not an image"),
    "/to?url=ftp://example.com/x.png": (400, "http"),
    "/to?url=file:///etc/passwd": (400, "http"),
    "/to?url=%5C%5Cexample.com": (400, "malformed"),
    "/to?url=http://a%00b/": (400, "not valid HTTP"),
    "/to?url=http://%FF%FE/": (400, "malformed"),
    "/to?url=http://user:pw@example.com/": (400, "credentials"),
}


async def test_a_site():
    async with hostile_site() as site, deployment(limits=LIMITS) as d:
        for path, (status, word) in SITE.items():
            begun = time.monotonic()
            check(await d.chat(ask(site.url(path))), status, word)
            assert time.monotonic() - begun < SOON_S, path
            for good in ("/good", "/hints", "/small_chunks"):
                assert (await d.chat(ask(site.url(good)))).status_code == 200, path


async def test_a_site_that_goes_on_talking():
    async with hostile_site() as site, deployment(limits=LIMITS) as d:
        assert (await d.chat(ask(site.url("/chatty")))).status_code == 200
        async with asyncio.timeout(SOON_S):
            await site.left.wait()
        assert site.unasked_bytes < 32 << 20


async def test_validators_that_no_request_may_hold_do_no_harm_to_the_next_one():
    async with hostile_site() as site, deployment(limits=LIMITS) as d:
        for _ in range(2):
            answer = await d.chat(ask(site.url("/validators")))
            assert answer.status_code == 200, answer.text
        assert len(site.paths) == 2, "asked again, as it cannot be asked about"


@pytest.mark.parametrize("path", ["/drip", "/drip_head", "/silent", "/silent_body"])
async def test_a_site_that_takes_for_ever(path):
    async with hostile_site() as site, deployment(limits=HURRIED) as d:
        begun = time.monotonic()
        check(await d.chat(ask(site.url(path))), 400, "--media-total-timeout-s")
        assert time.monotonic() - begun < SOON_S
        assert (await d.chat(ask(picture_url(56, 56)))).status_code == 200


async def test_a_slow_host_and_a_good_one_at_once():
    limits = MediaLimits(media_allow_private=True, media_max_fetches=2, media_max_fetches_per_host=1)
    async with hostile_site() as slow, hostile_site() as good, deployment(limits=limits) as d:
        stuck = [asyncio.create_task(d.chat(ask(slow.url(f"/silent?{at}")))) for at in range(6)]
        await until(lambda: slow.paths, "the first of them has its slot")
        answer = await d.chat(ask(good.url("/good", "localhost")))
        assert answer.status_code == 200, answer.text
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)


class Names(AbstractResolver):
    """Answers each look-up of a name with its next address, the last one for ever."""

    answers: ClassVar[dict[str, list[str]]] = {}

    async def resolve(self, host, port=0, family=0):
        addresses = self.answers[host]
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return [{"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self):
        pass


@pytest.fixture
def only_127_0_0_1_is_public(monkeypatch):
    real = guard.check_address

    def check_address(address, *, allow_private):
        if address != "127.0.0.1":
            real(address, allow_private=allow_private)

    monkeypatch.setattr(guard, "check_address", check_address)


@pytest.mark.usefixtures("only_127_0_0_1_is_public")
@pytest.mark.parametrize(
    "target",
    [
        "http://inside:{port}/good",
        "http://[::1]:{port}/good",
        "http://[::ffff:7f00:2]:{port}/good",
        "http://2130706434:{port}/good",
        "http://127.0.0.2:{port}/good",
        "http://moves:{port}/good",
    ],
)
async def test_a_redirect_inside(target):
    names = {"outside": ["127.0.0.1"], "inside": ["127.0.0.2"], "moves": ["127.0.0.1", "127.0.0.2"]}
    with patch.object(connect, "ThreadLookup", lambda threads: Names()), patch.object(Names, "answers", names):
        async with hostile_site() as site, deployment() as d:
            host = "moves" if "moves" in target else "outside"
            url = site.url(f"/to?url={target.format(port=site.port)}", host)
            word = "plain IPv4 address" if "2130706434" in target else "--media-allow-private"
            error = check(await d.chat(ask(url)), 400, word)
            assert error["code"] == "media_address_refused"
            assert site.paths == ["/to"], "nothing else was asked for"
            assert (await d.chat(ask(site.url("/good", "outside")))).status_code == 200


async def test_hosts_and_files_by_flag(tmp_path):
    (tmp_path / "good.png").write_bytes(picture(56, 56))
    (tmp_path / "passwd").symlink_to("/etc/passwd")
    frontend = {"allowed_local_media_path": str(tmp_path), "media_allowed_domains": "127.0.0.1"}
    async with hostile_site() as site, deployment(limits=LIMITS, frontend=frontend) as d:
        for url in (site.url("/good"), f"file://{tmp_path}/good.png"):
            assert (await d.chat(ask(url))).status_code == 200
        for url in (site.url("/good", "localhost"), site.url(f"/to?url={site.url('/good', 'localhost')}")):
            error = check(await d.chat(ask(url)), 400, "--media-allowed-domains")
            assert error["code"] == "media_domain_refused"
        for path in ("/etc/passwd", f"{tmp_path}/passwd", f"{tmp_path}/gone"):
            error = check(await d.chat(ask(f"file://{path}")), 400, "--allowed-local-media-path")
            assert error["code"] == "media_file_refused"
            assert str(tmp_path) not in error["message"]


async def test_the_cache_is_counted():
    async with hostile_site() as site, deployment(limits=LIMITS) as d:
        for _ in range(2):
            await d.chat(ask(site.url("/good")))
        text = (await d.http.get("/metrics")).text
        assert "triptych_media_cache_misses_total 2.0" in text
        assert "triptych_media_cache_hits_total 0.0" in text
