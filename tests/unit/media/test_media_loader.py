import subprocess
import sys
import threading

import pytest

from support.media_files import data_url, exif, picture, png_bomb
from support.odd_site import PICTURE, limits, serving
from triptych.contracts.errors import BadRequest, PayloadTooLarge, UnsupportedMedia
from triptych.media.formats.image import decode_image
from triptych.media.loader import INLINE_HASH_BYTES, MediaLoader, MediaReference
from triptych.media.naming import content_hash

ITEM = "messages[0].content[1].image_url"


async def load(url, **changes):
    async with MediaLoader(limits(**changes)) as loader:
        return await loader.load_one(MediaReference("image", url, ITEM))


async def test_a_data_url_becomes_a_medium_that_a_worker_can_decode():
    data = picture("JPEG", exif=exif(6))
    medium = await load(data_url(data, "application/octet-stream"))
    assert (medium.kind, medium.format, medium.width, medium.height) == ("image", "JPEG", 8, 16)
    assert medium.data == data
    assert medium.content_hash == content_hash("image", data)
    assert decode_image(medium, limits()).size == (8, 16)


async def test_large_ones_go_through_the_threads_with_the_same_result():
    data = picture() + bytes(2 * INLINE_HASH_BYTES)
    medium = await load(data_url(data), media_max_bytes=len(data))
    assert medium.data == data
    assert medium.content_hash == content_hash("image", data)
    for thread in threading.enumerate():
        if thread.name.startswith("triptych-media"):
            thread.join(10)
            assert not thread.is_alive()


async def test_the_content_has_one_name_wherever_it_comes_from():
    async with serving() as site, MediaLoader(limits()) as loader:
        remote = await loader.load_one(MediaReference("image", site.url("/picture"), ITEM))
        inline = await loader.load_one(MediaReference("image", data_url(PICTURE), ITEM))
        assert remote == inline


@pytest.mark.parametrize(
    ("url", "kind", "code"),
    [
        ("file:///etc/passwd", BadRequest, "media_file_refused"),
        ("data:image/png;base64,AAAAA", BadRequest, "invalid_media_url"),
        ("data:image/png;base64,", BadRequest, "media_damaged"),
        (data_url(picture()[:20]), BadRequest, "media_damaged"),
        (data_url(b"text"), UnsupportedMedia, "media_unsupported"),
        (data_url(picture(width=2)), BadRequest, "media_too_small"),
        (data_url(png_bomb(60_000, 60_000)), PayloadTooLarge, "media_too_large"),
        (data_url(bytes(200_000)), PayloadTooLarge, "media_too_large"),
        ("http://127.0.0.1:1/", BadRequest, "media_address_refused"),
    ],
)
async def test_every_refusal_names_the_field(url, kind, code):
    with pytest.raises(kind) as caught:
        await load(url, media_allow_private=False)
    assert caught.value.message.startswith(f"{ITEM}: ")
    assert (caught.value.param, caught.value.code) == (ITEM, code)


async def test_a_request_fetches_a_url_once_and_keeps_the_order():
    async with serving() as site, MediaLoader(limits()) as loader:
        other = data_url(picture("GIF"))
        urls = [site.url("/picture"), other, site.url("/picture"), other]
        media = await loader.load([MediaReference("image", url, f"[{at}]") for at, url in enumerate(urls)])
        assert [one.format for one in media] == ["PNG", "GIF", "PNG", "GIF"]
        assert len(site.requests) == 1
        await loader.load([MediaReference("image", urls[0], "[0]")])
        assert len(site.requests) == 2


async def test_the_first_error_ends_the_other_fetches():
    async with serving() as site, MediaLoader(limits()) as loader:
        references = [
            MediaReference("image", site.url("/slow"), "[0]"),
            MediaReference("image", data_url(b"text"), "[1]"),
        ]
        with pytest.raises(UnsupportedMedia) as caught:
            await loader.load(references)
        assert caught.value.param == "[1]"


async def test_the_number_of_media_is_bounded():
    async with MediaLoader(limits(media_max_items=2)) as loader:
        references = [MediaReference("image", data_url(PICTURE), f"[{at}]") for at in range(3)]
        assert len(await loader.load(references[:2])) == 2
        with pytest.raises(BadRequest, match=r"3 media; the limit is 2 \(--media-max-items\)") as caught:
            await loader.load(references)
        assert (caught.value.param, caught.value.code) == ("[2]", "too_many_media")


def test_the_edge_imports_neither_pillow_nor_numpy_nor_an_engine():
    code = """
import sys
import triptych.media.loader
sys.exit(", ".join({"PIL", "numpy", "torch", "vllm"} & set(sys.modules)) or None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
