import base64
import random

import msgspec
import pytest

from triptych.config.media import MediaLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge
from triptych.frontend.long_text import STRIDE_BYTES, parse_large
from triptych.frontend.requests import split_media
from triptych.frontend.schema import parse_chat, parse_completion
from triptych.media.byte_limit import byte_limit
from triptych.media.data_url import LongUrl, decode_data_url

LIMIT = byte_limit("image", MediaLimits(media_max_bytes=2 << 20))


def data(size=300_000, seed=1):
    return random.Random(seed).randbytes(size)


def url(content, head="data:image/png;base64,"):
    return head + base64.b64encode(content).decode()


def chat(*parts, **fields):
    return msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": list(parts)}], **fields})


def image(text):
    return {"type": "image_url", "image_url": {"url": text}}


def media_of(body):
    _, media = split_media(parse_large(body, parse_chat).messages)
    return media


def decoded(reference):
    return decode_data_url(reference.url, LIMIT, "item")


def test_long_urls_stay_in_the_body_and_short_ones_do_not():
    contents = [data(seed=1), data(90, seed=2), data(700_000, seed=3), data(400_001, seed=4), data(400_002, seed=5)]
    body = chat(
        image(url(contents[0])),
        image(url(contents[1])),
        {"type": "text", "text": 'what "is" this? ' * 9000},
        {"type": "video_url", "video_url": url(contents[2], "data:;base64,")},
        {"type": "audio_url", "audio_url": {"url": url(contents[3])}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(contents[4]).decode(), "format": "wav"}},
        max_tokens=3,
    )
    media = media_of(body)
    assert [isinstance(one.url, LongUrl) for one in media] == [True, False, True, True, True]
    assert [decoded(one) for one in media] == contents
    plain = parse_chat(body)
    request = parse_large(body, parse_chat)
    assert request.messages[0].content[2] == plain.messages[0].content[2]
    assert request.max_tokens == 3


@pytest.mark.parametrize("extra", range(-3, 4))
def test_any_place_and_length_gives_the_same(extra):
    for shift in (0, 1, STRIDE_BYTES - 1, STRIDE_BYTES // 2):
        content = data(2 * STRIDE_BYTES * 3 // 4 + extra)
        body = chat({"type": "text", "text": "x" * shift}, image(url(content)), {"type": "text", "text": "y"})
        (medium,) = media_of(body)
        assert decoded(medium) == content


def test_long_texts_that_are_no_media_stay_what_they_are():
    text = "data:" + "no medium at all " * 20_000
    body = chat({"type": "text", "text": text}, image(url(data())))
    request = parse_large(body, parse_chat)
    assert request.messages[0].content[0].text == text
    assert decoded(split_media(request.messages)[1][0]) == data()
    completion = msgspec.json.encode({"model": "m", "prompt": "x" * 500_000})
    assert parse_large(completion, parse_completion).prompt == "x" * 500_000
    tokens = msgspec.json.encode({"prompt": [7] * 300_000, "model": "m"})
    assert parse_large(tokens, parse_completion).prompt == [7] * 300_000


def test_escapes_are_read_by_the_decoder_of_json():
    content = data()
    body = chat(image(url(content))).replace(b"image/png", b"image\\/png")
    assert decoded(media_of(body)[0]) == content
    percent = url(content).replace("+", "%2B")
    assert decoded(media_of(chat(image(percent)))[0]) == content
    spelled = "data:application/octet-stream," + "".join(f"%{byte:02x}" for byte in content[:100_000])
    assert decoded(media_of(chat(image(spelled)))[0]) == content[:100_000]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda body: body[:-1],
        lambda body: body.replace(b'"url":"', b'"url":'),
        lambda body: body.replace(b'"model"', b'"modle"'),
        lambda body: body.replace(b'"role":"user"', b'"role":7'),
        lambda body: body[:200_000],
        lambda body: body[:150_000] + b'"' + body[150_000:],
        lambda body: b'"a"' + body[60:],
    ],
)
def test_errors_are_those_of_the_body_as_it_was_sent(break_it):
    body = break_it(chat(image(url(data()))))
    with pytest.raises(BadRequest) as plain:
        parse_chat(body)
    with pytest.raises(BadRequest) as large:
        parse_large(body, parse_chat)
    assert (large.value.message, large.value.param) == (plain.value.message, plain.value.param)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-3],
        lambda text: text[:-6] + "=" + text[-5:],
        lambda text: text[:200_000] + "====" + text[200_000:],
        lambda text: text[:200_000] + "-_-_" + text[200_000:],
        lambda text: text[:200_000] + "\u00e9\u00e9" + text[200_000:],
    ],
)
def test_bad_base64_is_refused(spoil):
    (medium,) = media_of(chat(image(spoil(url(data(300_000))))))
    with pytest.raises(BadRequest, match="base64"):
        decoded(medium)


def test_the_size_is_checked_before_anything_is_decoded():
    (medium,) = media_of(chat(image(url(data(3 << 20)))))
    with pytest.raises(PayloadTooLarge, match="--media-max-bytes"):
        decoded(medium)
