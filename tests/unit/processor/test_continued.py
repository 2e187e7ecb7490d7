"""Prompts that end within their last message: equal to transformers'."""

from __future__ import annotations

import pytest

from support.checkpoints import byte_level, text_checkpoint
from triptych.contracts.errors import BadRequest
from triptych.demo import MODEL_DIR
from triptych.processor.continued import FIELD, render_continued
from triptych.processor.template import ChatTemplate, load_chat_template
from triptych.processor.tokenizer import Tokenizer

TEMPLATES = {
    "kept": "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}",
    "trimmed": "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}<end>{% endfor %}",
    "nothing behind": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
LAST = ["The answer is", "The answer is ", "  two\n\n", "", " "]
TAG = "CONTINUE_FINAL_MESSAGE_TAG"


def chat(last: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": last}]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = text_checkpoint(tmp_path_factory.mktemp("m"), byte_level(), tokenizer_class="PreTrainedTokenizerFast")
    return transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("name", TEMPLATES)
def test_it_equals_that_of_transformers(reference, name, last):
    expected = reference.apply_chat_template(
        chat(last), chat_template=TEMPLATES[name], tokenize=False, continue_final_message=True
    )
    assert render_continued(ChatTemplate(TEMPLATES[name], {}), chat(last), {}) == expected


def test_the_demo_model_continues_its_last_message():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(MODEL_DIR))
    ours = load_chat_template(str(MODEL_DIR), Tokenizer.load(str(MODEL_DIR)))
    parts = [{"type": "text", "text": "There are"}, {"type": "text", "text": "two "}, {"type": "image"}]
    for last in (*LAST, parts):
        expected = theirs.apply_chat_template(chat(last), tokenize=False, continue_final_message=True)
        assert render_continued(ours, chat(last), {}) == expected


def test_a_message_cannot_move_the_place():
    template = ChatTemplate(TEMPLATES["kept"], {})
    assert render_continued(template, chat(f"a {TAG} b"), {}).endswith(f"a {TAG} b")


def test_a_message_without_text_is_refused():
    with pytest.raises(BadRequest, match="no text") as caught:
        render_continued(ChatTemplate(TEMPLATES["kept"], {}), chat([{"type": "image"}]), {})
    assert caught.value.param == FIELD


def test_a_template_that_leaves_it_out_is_told():
    template = ChatTemplate("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", {})
    with pytest.raises(BadRequest, match="leaves the last message's text out") as caught:
        render_continued(template, chat("x"), {})
    assert caught.value.param == FIELD
