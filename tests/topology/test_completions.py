"""``POST /v1/completions``: every form of a prompt, ``echo``, several prompts and choices."""

from __future__ import annotations

import pytest

from support.checkpoints import sentencepiece_like, text_checkpoint
from support.deployment import deployment
from support.sse import parse
from triptych.demo import MODEL_DIR
from triptych.processor.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(str(MODEL_DIR))


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=True)


def test_the_shape_of_an_answer(demo):
    answer = demo.complete("Hello 😀").json()
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", "demo")
    assert answer["choices"] == [{"index": 0, "text": "Hello 😀", "logprobs": None, "finish_reason": "stop"}]
    count = len(ids("Hello 😀"))
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["completion_tokens"] == count


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("one", ["one"]),
        (["one"], ["one"]),
        (["one", "two", "three"], ["one", "two", "three"]),
        (ids("tokens"), ["tokens"]),
        ([ids("tokens")], ["tokens"]),
        ([ids("one"), ids("two")], ["one", "two"]),
    ],
    ids=["text", "list of one text", "texts", "ids", "list of one list of ids", "lists of ids"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_every_form_of_a_prompt(demo, prompt, texts, stream):
    answer = demo.complete(prompt, stream=stream)
    if stream:
        got = parse(answer.content)
        assert [got.text(index) for index in range(len(texts))] == texts
        assert [got.finish_reason(index) for index in range(len(texts))] == ["stop"] * len(texts)
    else:
        assert [(c["index"], c["text"]) for c in answer.json()["choices"]] == list(enumerate(texts))


def test_sixteen_tokens_unless_told_otherwise(demo):
    answer = demo.complete("a b c d e f g h i j k l m n o p q r s t u v w x y z").json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(demo):
    answer = demo.complete(["one", "two"], n=2).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "one"), (1, "one"), (2, "two"), (3, "two")]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(ids("one")) + len(ids("two")), "each prompt counts once"
    assert usage["completion_tokens"] == 2 * usage["prompt_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["say <|im_start|>  it\n", ids("as ids")])
def test_echo_puts_the_prompt_in_front(demo, prompt, stream):
    said = prompt if isinstance(prompt, str) else "as ids"
    answer = demo.complete(prompt, echo=True, max_tokens=1, stream=stream)
    text = parse(answer.content).text() if stream else answer.json()["choices"][0]["text"]
    assert text.startswith(said)
    assert len(text) > len(said), "and the answer follows"


def test_echo_for_every_choice(demo):
    answer = demo.complete(["one", "two"], echo=True, n=2, max_tokens=9).json()
    assert [c["text"] for c in answer["choices"]] == ["oneone", "oneone", "twotwo", "twotwo"]
    stream = parse(demo.complete(["one", "two"], echo=True, n=2, max_tokens=9, stream=True).content)
    assert [stream.text(index) for index in range(4)] == ["oneone", "oneone", "twotwo", "twotwo"]


async def test_a_tokenizer_that_begins_texts_with_a_space(tmp_path):
    """SentencePiece-like: the prompt's own space is no part of the answer, one between words is."""
    folder = text_checkpoint(tmp_path / "m", sentencepiece_like("▁hello", "▁world"))
    async with deployment(model=folder) as d:
        answer = (await d.complete("hello world", temperature=0)).json()
        assert answer["choices"][0]["text"] == " hello world", "after the prompt, the word's own space counts"
        stream = parse((await d.complete("hello world", temperature=0, stream=True)).content)
        assert stream.deltas() == [" hello", " world"]
        echoed = (await d.complete("hello world", temperature=0, echo=True)).json()
        assert echoed["choices"][0]["text"] == "hello world hello world"
