"""Messages and prompts to token ids and media, without HTTP."""

import json
import threading

import pytest

from support.checkpoints import IMAGE_ID, IMAGE_TEXT, byte_level, card_of, cells, copy_demo, text_checkpoint
from triptych.contracts.errors import BadRequest, ConfigError, UnsupportedMedia
from triptych.contracts.media import Picture
from triptych.demo import MODEL_DIR
from triptych.kv.prompt_keys import expanded_prompt_keys
from triptych.media.loader import MediaReference
from triptych.processor import prompt_media
from triptych.processor.processor import Processor


class Source:
    """Gives pictures of the size that the URL says: ``WxH``."""

    def __init__(self):
        self.asked = []

    async def load(self, references):
        self.asked.extend(one.url for one in references)
        return [self._picture(one) for one in references]

    def _picture(self, one):
        if one.url == "bad":
            raise BadRequest(f"{one.item}: bad", param=one.item)
        width, height = map(int, one.url.split("x"))
        return Picture(content_hash=one.url, format="PNG", data=b"", width=width, height=height)


async def chat(parts, media, *, processor=None, source=None, role="user", **settings):
    processor = processor or Processor.load(card_of(MODEL_DIR), None)
    refs = [MediaReference("image", url, f"item {number}") for number, url in enumerate(media)]
    return await processor.chat([{"role": role, "content": parts}], refs, settings, (source or Source()).load)


IMAGE = {"type": "image"}


def text(value):
    return {"type": "text", "text": value}


async def test_one_placeholder_a_medium_and_the_length_that_the_model_sees():
    prompt = await chat([IMAGE, text("a"), IMAGE], ["112x112", "224x56"])
    assert prompt.token_ids.count(IMAGE_ID) == 2
    assert [medium.content_hash for medium in prompt.media] == ["112x112", "224x56"]
    assert prompt.length == len(prompt.token_ids) - 2 + cells(112, 112) + cells(224, 56)


@pytest.mark.parametrize("inline", [True, False])
async def test_long_prompts_are_named_beside_the_event_loop(inline, monkeypatch):
    seen = []

    def noting(*args):
        seen.append(threading.get_ident())
        return expanded_prompt_keys(*args)

    monkeypatch.setattr(prompt_media, "expanded_prompt_keys", noting)
    monkeypatch.setattr(prompt_media, "_INLINE_TOKENS", cells(112, 112) - (not inline))
    await chat([IMAGE, text("a")], ["112x112"])
    assert [one == threading.get_ident() for one in seen] == [inline]


async def test_text_alone():
    prompt = await chat("hello", [])
    assert prompt.length == len(prompt.token_ids)
    assert prompt.media == []


@pytest.mark.parametrize("where", [f"see {IMAGE_TEXT}", IMAGE_TEXT])
async def test_a_placeholder_in_a_text_is_refused(where):
    for content, media in ((where, []), ([text(where)], []), ([IMAGE, text(where)], ["56x56"])):
        with pytest.raises(BadRequest, match="stands for a medium") as caught:
            await chat(content, media)
        assert caught.value.code == "placeholder_in_text"


async def test_a_template_that_drops_media_is_found_out(tmp_path):
    folder = copy_demo(
        tmp_path,
        chat_template="{% for m in messages %}{% for p in m.content %}"
        "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}",
    )
    with pytest.raises(BadRequest, match="left out 1 of 1"):
        await chat([IMAGE, text("x")], ["56x56"], processor=Processor.load(card_of(folder), None))


async def test_media_behind_the_text_to_go_on_from_are_told_to_stand_before_it():
    processor = Processor.load(card_of(MODEL_DIR), None)

    async def continued(*parts):
        messages, media = [{"role": "user", "content": list(parts)}], [MediaReference("image", "56x56", "item 0")]
        return await processor.chat(messages, media, {}, Source().load, ending="open")

    assert (await continued(IMAGE, text("I see"))).media
    with pytest.raises(BadRequest, match="put them before that text") as caught:
        await continued(text("I see"), IMAGE)
    assert caught.value.param == "continue_final_message"


async def test_a_model_without_a_template_says_what_to_do(tmp_path):
    folder = text_checkpoint(tmp_path / "m", byte_level())
    processor = Processor.load(card_of(folder, modalities=()), None)
    with pytest.raises(BadRequest, match="--prompt-template"):
        await chat("hi", [], processor=processor)
    assert (await processor.completion("hi")).length == 2


async def test_prompt_template_for_a_model_without_one(tmp_path):
    folder = text_checkpoint(tmp_path / "m", byte_level())
    processor = Processor.load(card_of(folder, modalities=()), "Q:<prompt> A:")
    assert processor.tokenizer.decode((await chat("hi", [], processor=processor)).token_ids) == "Q:hi A:"


def test_a_wrong_prompt_template_is_a_config_error():
    with pytest.raises(ConfigError, match="<prompt>"):
        Processor.load(card_of(MODEL_DIR), "no place")


async def test_a_medium_that_cannot_be_had_names_its_item():
    with pytest.raises(BadRequest, match="item 1: bad"):
        await chat([IMAGE, IMAGE], ["56x56", "bad"])


async def test_nothing_is_fetched_for_a_prompt_that_is_refused_anyway():
    source = Source()
    with pytest.raises(BadRequest):
        await chat([IMAGE, text(IMAGE_TEXT)], ["56x56"], source=source)
    assert source.asked == []


async def test_a_shape_that_the_model_refuses():
    with pytest.raises(UnsupportedMedia, match=r"item 0: .*200 times"):
        await chat([IMAGE], ["1x500"])


def test_a_config_without_its_placeholder(tmp_path):
    folder = copy_demo(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["image_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="image_token_id"):
        Processor.load(card_of(folder), None)


async def test_long_texts_are_tokenised_beside_the_event_loop(monkeypatch):
    processor = Processor.load(card_of(MODEL_DIR, context_length=10**6), None)
    prepared, threads = processor.tokenizer.prompt, []

    def recorded(text, **settings):
        threads.append(threading.current_thread())
        return prepared(text, **settings)

    monkeypatch.setattr(processor.tokenizer, "prompt", recorded)
    words = "word " * 20_000
    prompt = await processor.completion(words)
    assert prompt.token_ids.tolist() == processor.tokenizer.encode(words, add_special_tokens=True)
    await processor.completion("short")
    assert [thread is threading.main_thread() for thread in threads] == [False, True]


@pytest.mark.parametrize("ids", [[], [-1], [10**6], [1, 2, 10**9]])
async def test_ids_outside_of_the_vocabulary(ids):
    with pytest.raises(BadRequest, match="prompt"):
        await Processor.load(card_of(MODEL_DIR), None).tokens(ids)
