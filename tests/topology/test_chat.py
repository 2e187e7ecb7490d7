"""``POST /v1/chat/completions``, answered whole."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from support.checkpoints import IMAGE_ID, cells, copy_demo, picture_url
from support.deployment import deployment
from triptych.demo import MODEL_DIR
from triptych.engines.mock.generate import MockGenerating


def test_the_shape_of_an_answer(demo):
    answer = demo.chat("Hello there").json()
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "demo")
    assert isinstance(answer["created"], int)
    [choice] = answer["choices"]
    assert choice["index"] == 0
    assert choice["message"] == {"role": "assistant", "content": "user\nHello there\nassistant\n", "refusal": None}
    assert (choice["logprobs"], choice["finish_reason"]) == (None, "stop")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] == usage["completion_tokens"], "the mock says the prompt again"
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "  two  spaces  ",
        "line\n\n\nbreaks\t tabs\n",
        "héllo wörld",
        "👩‍👩‍👧‍👦🏳️‍🌈😀",
        "e\u0301 combining",
        "漢字かな",
        "\u200bzero",
    ],
)
def test_text_comes_through_as_it_is(demo, text):
    content = demo.chat(text).json()["choices"][0]["message"]["content"]
    assert content == f"user\n{text}\nassistant\n"


def test_parts_of_text_are_put_together_as_the_template_does(demo):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert demo.chat(parts).json()["choices"][0]["message"]["content"] == "user\none two\nassistant\n"


def test_a_developer_speaks_as_the_system_and_a_refusal_is_said(demo):
    """The demo model's template prints any role, and the mock engine the prompt."""
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Help me"},
        {"role": "assistant", "content": None, "refusal": "I cannot."},
        {"role": "user", "content": "Why?"},
    ]
    answer = demo.chat(messages=messages).json()["choices"][0]["message"]["content"]
    told = "system\nBe kind.\n\nBe brief.\nuser\nHelp me\nassistant\nI cannot.\nuser\nWhy?\nassistant\n"
    assert answer == told


def test_a_role_that_nobody_knows_is_refused_by_name(demo):
    answer = demo.chat(messages=[{"role": "user", "content": "x"}, {"role": "pirate", "content": "arr"}])
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == ("messages[1].role", "role_unsupported")


def test_a_conversation_of_several_roles(demo):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "name": "ada"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    answer = demo.post({"model": "demo", "messages": messages, "temperature": 0}).json()
    assert answer["choices"][0]["message"]["content"] == (
        "system\nBe brief.\nuser\nHi\nassistant\n\nassistant\nHello\nuser\nBye\nassistant\n"
    )


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_length_ends_an_answer(demo, field):
    answer = demo.chat("one two three four", **{field: 3}).json()
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


def test_max_completion_tokens_is_the_newer_name_and_wins(demo):
    answer = demo.chat("one two three four", max_tokens=5, max_completion_tokens=2).json()
    assert answer["usage"]["completion_tokens"] == 2


def test_ignore_eos_goes_on_to_the_limit(demo):
    answer = demo.chat("hi", ignore_eos=True, max_tokens=50).json()
    assert answer["usage"]["completion_tokens"] == 50
    assert answer["choices"][0]["finish_reason"] == "length"


def test_min_tokens_holds_the_end_back(demo):
    assert demo.chat("hi").json()["usage"]["completion_tokens"] < 40
    assert demo.chat("hi", min_tokens=40).json()["usage"]["completion_tokens"] == 40


def test_without_max_tokens_the_answer_may_fill_the_context(short):
    answer = short.chat("hi", ignore_eos=True).json()
    assert answer["usage"]["total_tokens"] == 64
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("url_as", [lambda url: {"url": url}, lambda url: {"url": url, "detail": "high"}, lambda u: u])
def test_a_picture_counts_as_the_tokens_it_becomes(demo, url_as):
    picture = {"type": "image_url", "image_url": url_as(picture_url(112, 224))}
    with_picture = demo.chat([picture, {"type": "text", "text": "What?"}]).json()["usage"]["prompt_tokens"]
    without = demo.chat([{"type": "text", "text": "What?"}]).json()["usage"]["prompt_tokens"]
    assert with_picture - without == 2 + cells(112, 224), "its cells of 28 x 28 pixels, and two markers around"


async def test_what_the_worker_gets_of_media(monkeypatch):
    """One placeholder a medium, in order, the bytes as they were sent, and the same name for the same bytes."""
    got = []
    generate = MockGenerating.generate
    monkeypatch.setattr(
        MockGenerating, "generate", lambda self, one, *more: got.append(one) or generate(self, one, *more)
    )
    first, second = picture_url(64, 64, "red"), picture_url(32, 96, "blue")

    def part(url):
        return {"type": "image_url", "image_url": {"url": url}}

    async with deployment() as d:
        content = [part(first), {"type": "text", "text": "and"}, part(second), part(first)]
        assert (await d.chat(content)).status_code == 200
    [request] = got
    assert request.token_ids.count(IMAGE_ID) == 3
    assert [(m.width, m.height, m.format) for m in request.media] == [
        (64, 64, "PNG"),
        (32, 96, "PNG"),
        (64, 64, "PNG"),
    ]
    assert request.media[0].data == base64.b64decode(first.split(",")[1])
    names = [m.content_hash for m in request.media]
    assert names[0] == names[2] != names[1]


def test_the_text_around_pictures_keeps_its_order(demo):
    url = picture_url(64, 64)
    content = [
        {"type": "text", "text": "before "},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": " after"},
    ]
    assert demo.chat(content).json()["choices"][0]["message"]["content"] == "user\nbefore  after\nassistant\n"


def test_user_and_unknown_fields_are_ignored(demo):
    plain = demo.chat("same").json()["choices"]
    extra = {"user": "someone", "metadata": {"a": "1"}, "store": False, "made_up": [1, {"x": None}], "seed": None}
    assert demo.chat("same", **extra).json()["choices"] == plain


def test_jpeg_with_rotation_is_measured_as_seen(demo):
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (56, 448)).save(out, "JPEG", exif=exif)
    url = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
    rotated = demo.chat([{"type": "image_url", "image_url": {"url": url}}]).json()["usage"]["prompt_tokens"]
    upright = demo.chat([{"type": "image_url", "image_url": {"url": picture_url(448, 56)}}]).json()
    assert rotated == upright["usage"]["prompt_tokens"]


async def test_a_template_for_plain_text_gets_pictures_by_their_placeholder(tmp_path):
    """A checkpoint whose template knows no parts still takes media: the family's own text goes in front."""
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"
    folder = copy_demo(tmp_path, chat_template=template)
    async with deployment(model=folder) as d:
        part = {"type": "image_url", "image_url": {"url": picture_url(112, 112)}}
        answer = (await d.chat([{"type": "text", "text": "What?"}, part])).json()
        assert answer["choices"][0]["message"]["content"] == "[user] \nWhat?\n[assistant]"
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["completion_tokens"] + cells(112, 112)


async def test_prompt_template_replaces_the_models_own():
    async with deployment(frontend={"prompt_template": "Q: <prompt>\nA:"}) as d:
        part = {"type": "image_url", "image_url": {"url": picture_url(112, 112)}}
        answer = (await d.chat([part, {"type": "text", "text": "How many?"}])).json()
        assert answer["choices"][0]["message"]["content"] == "Q: \nHow many?\nA:"


def test_the_demo_model_folder_is_what_tests_expect():
    assert (MODEL_DIR / "chat_template.jinja").is_file()
