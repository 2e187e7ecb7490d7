"""Sounds over HTTP, on the mock engine with a checkpoint of a family that hears."""

from __future__ import annotations

import base64
import math
import wave
from io import BytesIO

import pytest

from benchmarks.audio_model import AUDIO_TEXTS, audio_checkpoint
from support.background import served
from support.checkpoints import picture_url
from support.deployment import deployment
from support.media_site import media_site
from triptych.config.media import MediaLimits

pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
pytest.importorskip("soxr", reason="the extra `audio` is not installed")

SPANS = [("epd",), ("e", "pd"), ("e", "p", "d")]


@pytest.fixture(scope="module", params=SPANS, ids="/".join)
def hearing(request, tmp_path_factory):
    folder = audio_checkpoint(tmp_path_factory.mktemp("audio") / "m")
    with served(model=folder, spans=request.param) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def epd(tmp_path_factory):
    with served(model=audio_checkpoint(tmp_path_factory.mktemp("audio") / "m")) as deployed:
        yield deployed


def wav(samples=16_000, rate=16_000, hertz=440):
    """A WAV file, base64."""
    tone = (round(9000 * math.sin(2 * math.pi * hertz * at / rate)) for at in range(samples))
    out = BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"".join(value.to_bytes(2, "little", signed=True) for value in tone))
    return base64.b64encode(out.getvalue()).decode()


def by_url(data):
    return {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}


def by_data(data, format="wav"):
    return {"type": "input_audio", "input_audio": {"data": data, "format": format}}


def text(words="what is it?"):
    return {"type": "text", "text": words}


def prompt_tokens(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["prompt_tokens"]


def error_of(answer, status, code):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    return error


def test_sounds_are_heard_in_every_mode(hearing):
    without = prompt_tokens(hearing.chat([text()]))
    # A second is 100 frames, 50 after the convolution and 25 after the pooling; two markers stand around it.
    assert prompt_tokens(hearing.chat([by_url(wav()), text()])) == without + 25 + 2
    two = [by_data(wav(32_000)), by_url(wav(8_000, 8_000)), text()]
    assert prompt_tokens(hearing.chat(two)) == without + 50 + 25 + 4


def test_the_named_format_is_not_believed(epd):
    expected = prompt_tokens(epd.chat([by_data(wav()), text()]))
    for named in ("mp3", "", "wav;charset=x,y", "a" * 2000):
        assert prompt_tokens(epd.chat([by_data(wav(), named), text()])) == expected


async def test_a_sound_by_url(tmp_path):
    files = {"/one.wav": base64.b64decode(wav())}
    settings = {"model": audio_checkpoint(tmp_path / "m"), "limits": MediaLimits(media_allow_private=True)}
    async with media_site(files) as site, deployment(**settings) as d:
        remote = await d.chat([{"type": "audio_url", "audio_url": f"{site}/one.wav"}, text()])
        assert prompt_tokens(remote) == prompt_tokens(await d.chat([by_url(wav()), text()]))
        missing = {"type": "audio_url", "audio_url": {"url": f"{site}/gone"}}
        error_of(await d.chat([missing, text()]), 400, "media_fetch_failed")


@pytest.mark.parametrize("part", [by_url, by_data])
def test_what_is_wrong_with_a_sound_is_said(epd, part):
    def ask(data):
        return epd.chat([text(), part(base64.b64encode(data).decode())])

    whole = base64.b64decode(wav())
    field = f"messages[0].content[1].{part('')['type']}"
    assert error_of(ask(b""), 400, "media_damaged")["param"] == field
    assert error_of(ask(whole[:1000]), 400, "media_damaged")["param"] == field
    assert "WAV, FLAC, MP3, OGG" in error_of(ask(b"words"), 415, "media_unsupported")["message"]
    assert "321 samples" in error_of(ask(base64.b64decode(wav(300))), 415, "media_unsupported")["message"]


def test_a_picture_for_a_model_that_hears(epd):
    answer = epd.chat([{"type": "image_url", "image_url": {"url": picture_url()}}])
    assert "text, audio" in error_of(answer, 400, "modality_unsupported")["message"]


def test_a_template_that_knows_a_sound_by_its_key(tmp_path):
    folder = audio_checkpoint(tmp_path / "m")
    sound = "".join(AUDIO_TEXTS)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if 'audio' in part or 'audio_url' in part %}" + sound + "\n"
        "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    )
    with served(model=folder) as keyed:
        assert prompt_tokens(keyed.chat([by_url(wav()), text()])) > prompt_tokens(keyed.chat([text()])) + 25


def test_a_placeholder_in_text_is_refused(epd):
    error_of(epd.chat([by_url(wav()), text(AUDIO_TEXTS[1])]), 400, "placeholder_in_text")


def test_a_sound_that_is_too_long_is_refused(epd, tmp_path):
    with served(model=audio_checkpoint(tmp_path / "m"), limits=MediaLimits(media_max_audio_s=0.5)) as short:
        message = error_of(short.chat([by_url(wav())]), 413, "media_too_large")["message"]
        assert "0.5 s (--media-max-audio-s)" in message
        assert short.chat([by_url(wav(8_000))]).status_code == 200
