import base64
import random

import msgspec
import pytest

from triptych.config.media import MediaLimits
from triptych.config.requests import RequestLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge
from triptych.contracts.tokens import TokenIds
from triptych.frontend.openai.body import large_body
from triptych.frontend.openai.body.large_body import is_small
from triptych.frontend.openai.body.large_body import parse_large as decode_large
from triptych.frontend.openai.body.long_values import WINDOW_BYTES as STRIDE_BYTES
from triptych.frontend.openai.chat.messages import split_media
from triptych.frontend.openai.chat.schema import parse_chat
from triptych.frontend.openai.completions.schema import parse_completion
from triptych.media.byte_limit import byte_limit
from triptych.media.fetch.data_url import LongUrl, decode_data_url

LIMIT = byte_limit("image", MediaLimits(media_max_bytes=2 << 20))


def parse_large(body, parse, **limits):
    return decode_large(body, parse, RequestLimits(**limits))


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
    assert parse_large(tokens, parse_completion).prompt == TokenIds([7] * 300_000)


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


# What is taken out of a body and put back.


def same(body, parse=parse_completion, **limits):
    """Decoding a body in pieces gives what decoding it at once does."""
    expected = parse(body)
    request = parse_large(body, parse, **limits)
    assert msgspec.to_builtins(request, enc_hook=list) == msgspec.to_builtins(expected)
    return request


PIECES = [
    "a",
    '\\"',
    "\\\\",
    "\\n",
    "\\u00e9",
    "\\ud83d\\ude00",
    "é",
    "漢",
    "😀",
    "\\/",
    "{",
    "[1,2",
    ",",
    "\\u0041",
    "x" * 61,
]


@pytest.mark.parametrize("seed", range(12))
def test_texts_of_any_characters_and_escapes(seed):
    chance = random.Random(seed)
    pieces = chance.choices(PIECES, k=chance.choice([30_000, 60_000]))
    text = "".join(pieces).encode()
    same(b'{"model":"m","prompt":"' + text + b'"}')
    same(b'{"messages":[{"role":"user","content":"' + text + b'"}],"model":"m"}', parse_chat)


@pytest.mark.parametrize("piece", ["\\ud83d", "\\ud83dx", "\\u12", "\\ude00", "\\x", "\x01", "\\"])
@pytest.mark.parametrize("at", [1, STRIDE_BYTES - 5, STRIDE_BYTES, 3 * STRIDE_BYTES])
def test_texts_that_are_not_valid(piece, at):
    text = "y" * at + piece + "z" * 200_000
    with pytest.raises(BadRequest):
        parse_large(f'{{"model":"m","prompt":"{text}"}}'.encode(), parse_completion)
    with pytest.raises(BadRequest):
        parse_large(b'{"model":"m","prompt":"' + b"y" * at + b"\xff" + b"z" * 200_000 + b'"}', parse_completion)


@pytest.mark.parametrize("ids", [[7], list(range(100_000)), [4294967295] * 20_000, [0] * 40_000])
@pytest.mark.parametrize("blanks", [",", " , ", ",\n"])
def test_lists_of_token_ids(ids, blanks):
    written = f"[{blanks.join(map(str, ids))}]"
    request = same(f'{{"model":"m","prompt":{written}}}'.encode())
    assert isinstance(request.prompt, TokenIds if len(written) > 2 * STRIDE_BYTES else list | TokenIds)
    several = same(f'{{"model":"m","prompt":[{written},[1,2],{written}]}}'.encode())
    assert [list(one) for one in several.prompt] == [ids, [1, 2], ids]
    stops = f'{{"model":"m","prompt":"x","stop_token_ids":{written}}}'.encode()
    if len(ids) == 1:
        same(stops)
    else:
        with pytest.raises(BadRequest, match=f"{len(ids):,}") as refused:
            parse_large(stops, parse_completion)
        assert refused.value.param == "stop_token_ids"


def test_too_many_stop_token_ids_are_counted_where_they_are(monkeypatch):
    monkeypatch.setattr(large_body, "TokenIds", None)  # a list of them would be made through it
    body = f'{{"model":"m","prompt":"x","stop_token_ids":[{",".join(["5"] * 1_000_000)}]}}'.encode()
    with pytest.raises(BadRequest, match="1,000,000"):
        parse_large(body, parse_completion)


@pytest.mark.parametrize("wrong", ["-1", "4294967296", "1.5", "null", '"a"', "", "1 2", "01"])
def test_lists_that_hold_no_token_ids(wrong):
    numbers = ",".join(["7"] * 60_000)
    with pytest.raises(BadRequest):
        parse_large(f'{{"model":"m","prompt":[{numbers},{wrong},{numbers}]}}'.encode(), parse_completion)


def test_long_values_of_other_fields_are_put_back_too():
    long = "z\n" * 100_000
    fields = {"user": long, "stop": [long, "b"], "chat_template_kwargs": {"tools": [{long: long}], "n": [7] * 60_000}}
    same(chat({"type": "text", "text": long}, **fields), parse_chat)
    call = {"id": long, "type": "function", "function": {"name": "f", "arguments": long}}
    message = {"role": long, "content": "x", "name": long, "tool_calls": [call]}
    same(msgspec.json.encode({"model": long, "messages": [message]}), parse_chat)


def test_many_short_texts_are_taken_out_where_too_much_would_be_left():
    messages = [{"role": "user", "content": f"{number} " * 400} for number in range(2_000)]
    same(msgspec.json.encode({"model": "m", "messages": messages}), parse_chat)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[' + b'{"role":"user","content":""},' * 100_000,
        b'{"model":"m","chat_template_kwargs":' + b"[" * 1_000_000,
        b'{"model":"m","x":[' + b"-1," * 1_000_000,
        b'{"model":"m","stop":[' + b'"",' * 1_000_000,
        b'{"model":"m","x":' + b'""' * 1_000_000,
        b'{"model":"m","x":' + b'"name":' * 1_000_000,
        b'{"model":"m","x":' + b'"%s":' % (b"long" * 25) * 200_000,
    ],
    ids=lambda body: repr(body[12:36]),
)
def test_values_are_counted_before_they_are_made(body):
    with pytest.raises(BadRequest) as error:
        parse_large(body, lambda body: pytest.fail("decoded"))
    assert error.value.code == "too_many_values"
    assert "--max-json-values" in error.value.message


@pytest.mark.parametrize("padding", [b" " * (9 << 20), b'"n":' + b"1" * (9 << 20) + b","])
def test_what_is_neither_text_nor_token_ids_is_bounded(padding):
    with pytest.raises(PayloadTooLarge):
        parse_large(b'{"model":"m",' + padding + b'"prompt":"x"}', lambda body: pytest.fail("decoded"))


def test_small_bodies_are_told_by_their_values():
    assert is_small(chat({"type": "text", "text": "a, b [c] " * 500}))
    assert is_small(msgspec.json.encode({"model": "m", "prompt": "words and words " * 25_000}))
    assert not is_small(msgspec.json.encode({"model": "m", "prompt": "x" * 600_000}))
    assert not is_small(b'{"model":"m","messages":[' + b"{}," * 20_000 + b"{}]}")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "x"}, {"role": "z" * 300_000}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "z\n" * 200_000}]}]}, None),
        ({"messages": [], "user": "z" * 300_000}, "user"),
        ({"messages": [], "chat_template_kwargs": {"tools": ["z" * 300_000]}}, "chat_template_kwargs.tools[0]"),
    ],
)
def test_one_text_has_a_bound_that_media_do_not_have(fields, param):
    body = msgspec.json.encode({"model": "m", **fields})
    with pytest.raises(PayloadTooLarge) as error:
        parse_large(body, parse_chat, max_text_bytes=250_000)
    assert error.value.param == (param or "messages[0].content[0].text")
    assert "--max-text-bytes" in error.value.message
    parse_large(body, parse_chat, max_text_bytes=600_000)
    assert parse_large(chat(image(url(data()))), parse_chat, max_text_bytes=250_000)


def test_texts_of_a_body_over_a_limit_are_not_restored(monkeypatch):
    monkeypatch.setattr(large_body, "pieces_of_text", lambda body, value: pytest.fail("put back"))
    messages = [{"role": "user", "content": "x\\n" * 300} for _ in range(3000)]
    with pytest.raises(BadRequest, match="--max-messages"):
        parse_large(msgspec.json.encode({"model": "m", "messages": messages}), parse_chat, max_messages=2999)
