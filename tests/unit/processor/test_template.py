"""Chat templates: equal to transformers' rendering, in a sandbox."""

import json
from datetime import datetime

import pytest

from support.checkpoints import byte_level, copy_demo, text_checkpoint
from triptych.contracts.errors import BadRequest, ConfigError
from triptych.demo import MODEL_DIR
from triptych.processor.template import ChatTemplate, load_chat_template, parse_prompt_template
from triptych.processor.tokenizer import Tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Hi "there" <b>&</b> é\n'},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
TEMPLATES = {
    "plain": "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "whitespace": "{%- for m in messages %}\n    {{- m.role }}:\n"
    "  {% if true %}\n  x\n  {% endif %}\n{% endfor %}\nend",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}|{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages[1] | tojson(indent=2) }}",
    "tojson options": "{{ {'b': 'é', 'a': [1, 2]} | tojson(sort_keys=true, separators=(',', ':')) }}"
    "{{ 'é' | tojson(ensure_ascii=true) }}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}",
    "macro": "{% macro say(m) %}<{{ m.role | upper }}>{{ m.content | trim }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% endfor %}",
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "undefined": "{{ nothing }}{% if tools is not none %}tools{% endif %}{% if documents is none %}none{% endif %}"
    "{% if tools is defined %}defined{% endif %}",
    "strftime": "{{ strftime_now('%d %b %Y') }}",
    "string methods": "{{ messages[1].content.split(' ')[0] }}{{ messages[0]['content'][::-1] }}"
    "{{ messages | map(attribute='role') | join(',') }}",
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """transformers' own tokenizer of a small checkpoint."""
    transformers = pytest.importorskip("transformers")
    folder = text_checkpoint(
        tmp_path_factory.mktemp("m"),
        byte_level(),
        bos_token="<|begin|>",
        eos_token="<|end|>",
        tokenizer_class="PreTrainedTokenizerFast",
    )
    return transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))


@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering_equals_that_of_transformers(reference, name):
    source = TEMPLATES[name]
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    expected = reference.apply_chat_template(CHAT, chat_template=source, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(source, special).render(CHAT, {}) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"enable_thinking": False},
        {"documents": [{"title": "t", "text": "x"}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_equal_those_of_transformers(reference, settings):
    source = "{{ enable_thinking }}|{{ documents | tojson }}|{{ tools | tojson }}|{{ messages[0].content }}"
    source = source if "enable_thinking" in settings else source.replace("{{ enable_thinking }}", "")
    expected = reference.apply_chat_template(
        CHAT, chat_template=source, tokenize=False, add_generation_prompt=True, **settings
    )
    assert ChatTemplate(source, {}).render(CHAT, settings) == expected


def test_the_demo_model_equals_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(MODEL_DIR))
    ours = load_chat_template(str(MODEL_DIR), Tokenizer.load(str(MODEL_DIR)))
    parts = [{"type": "image"}, {"type": "text", "text": "What is it? é😀"}]
    for chat in (CHAT, [{"role": "user", "content": parts}], [*CHAT, {"role": "user", "content": parts}]):
        expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert ours.render(chat, {}) == expected
        ids = theirs(expected, add_special_tokens=False)["input_ids"]
        assert Tokenizer.load(str(MODEL_DIR)).encode(expected, add_special_tokens=False) == ids


@pytest.mark.parametrize("source", ["{{ a }}", "{{ m.a }}", "{{ m['a'] }}", "{% if m.a is defined %}{% endif %}"])
def test_what_a_template_reads(source):
    template = ChatTemplate(source, {})
    assert template.reads("a")
    assert template.reads("b", "a")
    assert not template.reads("b")


def test_raise_exception_is_the_clients_fault():
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(BadRequest, match="roles must alternate") as caught:
        template.render(CHAT, {})
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ (messages | attr('__class__')).__name__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
    ],
)
def test_the_sandbox_lets_nothing_out(source):
    template = ChatTemplate(source + "!", {})
    try:
        text = template.render(CHAT, {})
    except BadRequest:
        return
    assert text == "!", f"{source} gave {text!r}"


@pytest.mark.parametrize("source", ["{{ messages[99].content.x }}", "{{ 1 / 0 }}", "{{ messages + 5 }}"])
def test_a_template_that_fails_is_told_to_the_client(source):
    with pytest.raises(BadRequest, match="cannot render"):
        ChatTemplate(source, {}).render(CHAT, {})


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'a' | no_such_filter }}", "{% generation %}"])
def test_a_template_that_does_not_compile_is_told_at_start(source):
    with pytest.raises(ConfigError, match="does not compile"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    ("source", "takes_parts"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{% for m in messages %}{{ 'x' + m.content }}{% endfor %}", False),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", True),
        (
            "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
            "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
            "{% endfor %}",
            True,
        ),
        ("{% for m in messages %}{{ m.content | trim }}{% endfor %}", False),
        ("{{ raise_exception('no') }}", False),
    ],
)
def test_whether_a_template_reads_parts_is_found_by_trying(source, takes_parts):
    assert ChatTemplate(source, {}).takes_parts is takes_parts


def test_where_the_template_may_stand(tmp_path):
    tokenizer = Tokenizer.load(str(MODEL_DIR))

    def first(folder):
        template = load_chat_template(str(folder), Tokenizer(tokenizer.fast, settings))
        return template and template.render(CHAT, {})

    settings = {}
    assert first(tmp_path) is None, "no template is no error: such models serve completions"
    settings = {"chat_template": "from settings"}
    assert first(tmp_path) == "from settings"
    settings = {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "named"}]}
    assert first(tmp_path) == "named"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert first(tmp_path) == "from json"
    (tmp_path / "chat_template.jinja").write_text("from jinja")
    assert first(tmp_path) == "from jinja", "the newest place wins"


def test_a_damaged_template_file_is_one_line(tmp_path):
    folder = copy_demo(tmp_path)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text("{")
    with pytest.raises(ConfigError, match=r"chat_template\.json") as caught:
        load_chat_template(str(folder), Tokenizer.load(str(folder)))
    assert "\n" not in str(caught.value)


def test_today_is_the_day_of_the_request():
    text = ChatTemplate("{{ strftime_now('%Y') }}", {}).render(CHAT, {})
    assert abs(int(text) - datetime.now().year) <= 1


def test_prompt_template():
    assert parse_prompt_template("a <prompt> b <prompt>")("X") == "a X b X"
    assert parse_prompt_template("<prompt>")("<prompt> {0} %s") == "<prompt> {0} %s", "a text is not a template"
    with pytest.raises(ConfigError, match="must contain `<prompt>`"):
        parse_prompt_template("no place")
