"""Fields of a request: what each does, and what each refuses by name."""

from __future__ import annotations

import math

import msgspec
import pytest

from support.checkpoints import CONTEXT, VOCABULARY, copy_demo
from support.deployment import deployment
from support.sse import parse
from triptych.contracts.answer import TokenDelta, TokenLogprob
from triptych.demo import MODEL_DIR
from triptych.engines.mock.engine import MockEngine
from triptych.engines.mock.generate import MockGenerating
from triptych.processor.tokenizer import Tokenizer

WITHIN = f"between 0 and {VOCABULARY - 1}"
END = Tokenizer.load(str(MODEL_DIR)).fast.token_to_id("<|im_end|>")
SCHEMA = "response_format.json_schema.schema"


def schema_of(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def refused(answer, param, *words, status=400):
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert error["param"] == param, error
    for word in words:
        assert word in error["message"], f"{word!r} expected in {error['message']!r}"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": 2.1}, "temperature", ["at least 0", "at most 2"]),
        ({"temperature": -0.1}, "temperature", ["at least 0"]),
        ({"top_p": 0}, "top_p", ["above 0", "at most 1"]),
        ({"top_p": 1.01}, "top_p", ["at most 1"]),
        ({"min_p": 1.5}, "min_p", ["at most 1"]),
        ({"top_k": -2}, "top_k", ["at least -1"]),
        ({"presence_penalty": 3}, "presence_penalty", ["at most 2"]),
        ({"frequency_penalty": -3}, "frequency_penalty", ["at least -2"]),
        ({"repetition_penalty": 0}, "repetition_penalty", ["above 0"]),
        ({"min_tokens": -1}, "min_tokens", ["at least 0"]),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", ["at most max_tokens", "8"]),
        ({"max_tokens": 0}, "max_tokens", ["at least 1"]),
        ({"max_tokens": -5}, "max_tokens", ["at least 1"]),
        ({"max_tokens": 9999}, "max_tokens", ["9,999", f"{CONTEXT:,}", "context length"]),
        ({"max_completion_tokens": 9999}, "max_completion_tokens", [f"{CONTEXT:,}"]),
        ({"n": 0}, "n", ["between 1 and 16", "--max-choices"]),
        ({"n": 17}, "n", ["between 1 and 16", "--max-choices"]),
        ({"stop": ["x"] * 17}, "stop", ["17", "16", "--max-stop-strings"]),
        ({"stop": ""}, "stop", ["empty"]),
        ({"stop": ["a", ""]}, "stop", ["empty"]),
        ({"stop_token_ids": [VOCABULARY]}, "stop_token_ids", [WITHIN]),
        ({"stop_token_ids": [1, -1]}, "stop_token_ids", [WITHIN]),
        ({"allowed_token_ids": []}, "allowed_token_ids", ["empty"]),
        ({"allowed_token_ids": [1, VOCABULARY]}, "allowed_token_ids", [WITHIN, "[1]"]),
        ({"allowed_token_ids": [4], "stop_token_ids": [4], "min_tokens": 1}, "allowed_token_ids", ["min_tokens"]),
        ({"allowed_token_ids": [END], "min_tokens": 1}, "allowed_token_ids", ["min_tokens"]),
        ({"allowed_token_ids": [1], **schema_of({})}, "allowed_token_ids", ["response_format"]),
        ({"logit_bias": {str(VOCABULARY): 1}}, "logit_bias", [WITHIN]),
        ({"logit_bias": {"1": 101}}, "logit_bias", ["at most 100"]),
        ({"logit_bias": {"1": -101}}, "logit_bias", ["at least -100"]),
        ({"top_logprobs": 3}, "top_logprobs", ["logprobs"]),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ["between 0 and 20"]),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", ["between 0 and 20"]),
        ({"seed": 1 << 63}, "seed", ["at most"]),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", ["required"]),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            ["required"],
        ),
        (schema_of({"type": "string", "pattern": "[a-z]{1,20000}"}), f"{SCHEMA}.pattern", ["--max-schema-repeats"]),
        (schema_of({"const": "x" * 200_000}), SCHEMA, ["131,072", "--max-schema-bytes"]),
        (schema_of({"properties": {"a": {"minLength": -5}}}), f"{SCHEMA}.properties.a.minLength", ["between 0"]),
        (schema_of({"$ref": "#"}), f"{SCHEMA}.$ref", ["leads back to itself"]),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", ["not allowed", "documents"]),
        ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs.bos_token", ["not allowed"]),
        (
            {"chat_template_kwargs": {"add_generation_prompt": False}},
            "chat_template_kwargs.add_generation_prompt",
            ["not allowed"],
        ),
    ],
)
def test_out_of_bounds_is_refused_by_name(demo, fields, param, words):
    for stream in (False, True):
        refused(demo.chat("hi", stream=stream, **fields), param, *words)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"logprobs": 21}, "logprobs", ["between 0 and 20"]),
        ({"logprobs": -1}, "logprobs", ["between 0 and 20"]),
        ({"echo": True, "logprobs": 1}, "echo", ["logprobs"]),
        ({"max_tokens": CONTEXT}, "max_tokens", [f"{CONTEXT:,}"]),
        ({"prompt": []}, "prompt", []),
        ({"prompt": [[]]}, "prompt[0]", ["no token"]),
        ({"prompt": ["a", ""]}, "prompt[1]", ["no token"]),
        ({"prompt": ["a", 1]}, "prompt", ["list"]),
        ({"prompt": [[1], "a"]}, "prompt", ["list"]),
        ({"prompt": [VOCABULARY]}, "prompt", [WITHIN, "prompt[0]"]),
        ({"prompt": [1, -1]}, "prompt", [WITHIN, "prompt[1]"]),
        ({"prompt": [[1], [1, 2, -1]]}, "prompt[1]", [WITHIN, "prompt[1][2]"]),
        ({"prompt": ["a", "b" * 100 * CONTEXT]}, "prompt[1]", ["characters", f"{CONTEXT:,}"]),
        ({"prompt": [[1], [1] * (CONTEXT + 1)]}, "prompt[1]", [f"{CONTEXT + 1:,} token ids", f"{CONTEXT:,}"]),
        ({"prompt": ["a"] * 65}, "prompt", ["65", "64"]),
    ],
)
def test_completions_refuse_by_name_too(demo, fields, param, words):
    refused(demo.complete(**{"prompt": "hi", **fields}), param, *words)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2, "top_p": 1, "top_k": -1, "min_p": 0},
        {"temperature": 0.0, "top_p": 0.001, "top_k": 0, "min_p": 1},
        {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 0.1},
        {"logit_bias": {"0": 100, str(VOCABULARY - 1): -100}},
        {"response_format": {"type": "text"}, "allowed_token_ids": [1]},
        {"allowed_token_ids": [END, 1], "min_tokens": 1},
        {"allowed_token_ids": None},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
        {"chat_template_kwargs": {"enable_thinking": False, "documents": []}},
        {"seed": -(1 << 63)},
        {"seed": (1 << 63) - 1, "n": 2},
        {"stop": ["x"] * 16},
        {"max_tokens": None, "temperature": None, "n": None, "stop": None, "logit_bias": None, "stream": None},
    ],
)
def test_the_ends_of_what_is_allowed(demo, fields):
    assert demo.chat("hi", **fields).status_code == 200


async def test_what_reaches_the_worker(monkeypatch):
    """Every sampling field crosses as it was given, with the checkpoint's defaults below."""
    got = []
    generate = MockGenerating.generate
    monkeypatch.setattr(
        MockGenerating, "generate", lambda self, one, *more: got.append(one) or generate(self, one, *more)
    )
    fields = {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.25,
        "repetition_penalty": 1.5,
        "seed": 11,
        "ignore_eos": True,
        "logit_bias": {"3": -1.5},
        "stop_token_ids": [4, 5],
        "allowed_token_ids": [3, 4],
    }
    async with deployment() as d:
        schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
        await d.chat("hi", logprobs=True, top_logprobs=2, **fields)
        await d.chat("hi", response_format=schema)
        await d.complete("hi", n=3, seed=5, top_k=-1)
        await d.chat("hi", response_format={"type": "json_object"})
    sampling = got[0].sampling
    for name, value in fields.items():
        expected = {3: -1.5} if name == "logit_bias" else tuple(value) if isinstance(value, list) else value
        assert getattr(sampling, name) == expected, name
    guided = got[1].sampling.guided
    assert (sampling.logprobs, guided.kind, guided.schema) == (2, "json_schema", '{"type":"object"}')
    assert sorted(r.sampling.seed for r in got[2:5]) == [5, 6, 7], "choices have seeds of their own"
    assert got[2].sampling.top_k == 0, "-1 and 0 both mean every token"
    assert len({r.id for r in got}) == 6
    assert got[5].sampling.guided.kind == "json_object"
    assert got[5].sampling.logprobs is None


async def test_long_texts_of_a_schema_arrive_whole(monkeypatch):
    """They are taken out of large bodies while these are decoded, and put back."""
    got = []
    generate = MockGenerating.generate

    def recording(self, request, embeddings=()):
        got.append(request)
        return generate(self, request, embeddings)

    monkeypatch.setattr(MockGenerating, "generate", recording)
    schema = {"const": "ab" * 45_000, "x" * 1000: True}
    async with deployment() as d:
        answer = await d.chat("hi", user="a", chat_template_kwargs={"documents": ["x" * 600_000]}, **schema_of(schema))
        assert answer.status_code == 200, answer.text
    assert msgspec.json.decode(got[0].sampling.guided.schema) == schema


def test_choices_differ_by_seed_and_come_again_with_it(demo):
    def texts(seed):
        answer = demo.chat("a b c d e f g", n=4, seed=seed, temperature=1).json()
        assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
        return [c["message"]["content"] for c in answer["choices"]]

    assert texts(3) == texts(3), "the same seed gives the same answers"
    assert len(set(texts(3))) > 1, "but its choices differ"
    assert texts(3)[1:] == texts(4)[:3], "seeds count up over the choices"


@pytest.mark.parametrize("top", [None, 0, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_chat(demo, top, stream):
    answer = demo.chat("Hi 😀", logprobs=True, top_logprobs=top, stream=stream)
    if stream:
        chunks = [c for c in parse(answer.content).choices() if c["logprobs"]]
        positions = [position for chunk in chunks for position in chunk["logprobs"]["content"]]
        assert all(chunk["delta"]["content"] for chunk in chunks), "logprobs come with the text they complete"
        count = len(positions)
    else:
        positions = answer.json()["choices"][0]["logprobs"]["content"]
        count = answer.json()["usage"]["completion_tokens"]
    plain = demo.chat("Hi 😀").json()
    assert len(positions) == count == plain["usage"]["completion_tokens"]
    said = b"".join(bytes(position["bytes"]) for position in positions)
    assert said.decode() == plain["choices"][0]["message"]["content"]
    for position in positions:
        assert position["logprob"] == pytest.approx(math.log(0.5))
        assert len(position["top_logprobs"]) == (top or 0)
        assert (
            position["top_logprobs"][:1] == [{key: position[key] for key in ("token", "logprob", "bytes")}][: top or 0]
        )
    parts = [position["token"] for position in positions if position["token"].startswith("bytes:")]
    assert parts == ["bytes:\\xf0", "bytes:\\x9f", "bytes:\\x98", "bytes:\\x80"]
    assert positions[0]["token"] == "<|im_start|>", "also tokens that are no part of the text are listed"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_completions(demo, stream):
    answer = demo.complete("one two", logprobs=2, stream=stream)
    if stream:
        parts = [c["logprobs"] for c in parse(answer.content).choices() if c["logprobs"]]
        joined = {key: [one for part in parts for one in part[key]] for key in parts[0]}
    else:
        joined = answer.json()["choices"][0]["logprobs"]
    assert "".join(joined["tokens"]) == "one two"
    offsets = [sum(map(len, joined["tokens"][:index])) for index in range(len(joined["tokens"]))]
    assert joined["text_offset"] == offsets
    assert len(joined["token_logprobs"]) == len(joined["top_logprobs"]) == len(joined["tokens"])
    assert all(len(top) == 2 for top in joined["top_logprobs"])


def test_offsets_of_completions_count_characters(demo):
    answer = demo.complete("é 😀 日本!", logprobs=3).json()["choices"][0]
    tokens, offsets = answer["logprobs"]["tokens"], answer["logprobs"]["text_offset"]
    assert answer["text"] == "é 😀 日本!"
    assert offsets[-1] == len(answer["text"]) - 1
    assert {offset for token, offset in zip(tokens, offsets, strict=True) if token.startswith("bytes:\\xf0")} == {2}
    assert all(len(top) == 3 for top in answer["logprobs"]["top_logprobs"]), "no two alternatives share a key"


def test_without_asking_there_are_no_logprobs(demo):
    assert demo.chat("hi", logprobs=False).json()["choices"][0]["logprobs"] is None
    assert demo.complete("hi").json()["choices"][0]["logprobs"] is None


async def test_the_templates_settings_reach_the_template(tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}|{{ enable_thinking }}|{{ mine }}"
    folder = copy_demo(tmp_path, chat_template=template)
    async with deployment(model=folder, frontend={"chat_template_kwargs": "mine, enable_thinking"}) as d:
        answer = (await d.chat("x", chat_template_kwargs={"enable_thinking": True, "mine": "m"})).json()
        assert answer["choices"][0]["message"]["content"] == "x|True|m"
        refused(await d.chat("x", chat_template_kwargs={"tools": []}), "chat_template_kwargs.tools", "mine")


def said(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


async def test_how_a_prompt_ends_and_what_it_is_told(tmp_path):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}.{% endfor %}{{ documents | tojson if documents else '' }}"
        "{% if add_generation_prompt %}[a]{% endif %}"
    )
    folder = copy_demo(tmp_path, chat_template=template)
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "it is "}]
    async with deployment(model=folder, frontend={"chat_template_kwargs": "documents"}) as d:
        assert said(await d.chat("x")) == "[user]x.[a]"
        assert said(await d.chat("x", add_generation_prompt=True)) == "[user]x.[a]"
        assert said(await d.chat("x", add_generation_prompt=False)) == "[user]x."
        assert said(await d.chat("x", documents=[{"text": "y"}])) == '[user]x.[{"text": "y"}][a]'
        for more in ({}, {"add_generation_prompt": False}):
            answer = await d.chat(messages=chat, continue_final_message=True, **more)
            assert said(answer) == "[user]x.[assistant]it is "
        for content in (None, []):
            nothing = [*chat, {"role": "assistant", "content": content}]
            refused(await d.chat(messages=nothing, continue_final_message=True), "continue_final_message", "no text")
        both = {"continue_final_message": True, "add_generation_prompt": True}
        refused(await d.chat("x", **both), "continue_final_message", "exclude")
        twice = {"documents": [], "chat_template_kwargs": {"documents": [{}]}}
        refused(await d.chat("x", **twice), "documents", "either")
        deep = {"text": "y"}
        for _ in range(40):
            deep = {"a": deep}
        refused(await d.chat("x", documents=[deep]), "documents", "32 levels")
    async with deployment(model=folder, frontend={"chat_template_kwargs": "thinking"}) as d:
        refused(await d.chat("x", documents=[]), "documents", "--chat-template-kwargs")
    async with deployment(frontend={"prompt_template": "Q: <prompt> A:"}) as d:
        refused(await d.chat("x", continue_final_message=True), "continue_final_message", "--prompt-template")
        refused(await d.chat("x", add_generation_prompt=False), "add_generation_prompt", "--prompt-template")
        settings = {"chat_template_kwargs": {"enable_thinking": False}}
        refused(await d.chat("x", **settings), "chat_template_kwargs.enable_thinking", "--prompt-template")


@pytest.mark.parametrize("field", ["include_stop_str_in_output", "no_stop_trim"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_ended_an_answer_may_be_a_part_of_it(demo, field, stream):
    def text(**fields):
        answer = demo.complete("one two three", stream=stream, **fields)
        choices = parse(answer.content).choices() if stream else answer.json()["choices"]
        assert choices[-1]["finish_reason"] == "stop"
        return "".join(one["text"] for one in choices)

    for ends in ({"stop": " two"}, {"stop": ["thr", " two"]}):
        assert text(**ends) == text(**ends, **{field: False}) == "one"
        assert text(**ends, **{field: True}) == "one two"


async def test_a_completion_without_special_tokens(tmp_path, monkeypatch):
    got = []
    prompt = Tokenizer.prompt

    def recording(self, text, *, add_special_tokens):
        got.append(add_special_tokens)
        return prompt(self, text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(Tokenizer, "prompt", recording)
    async with deployment() as d:
        for given in (None, True, False):
            assert (await d.complete("x", add_special_tokens=given)).status_code == 200
    assert got == [True, True, False]


async def test_reasoning_reaches_the_template(tmp_path):
    template = "{% for m in messages %}<{{ m.reasoning }}|{{ m.reasoning_content }}>{{ m.content }}{% endfor %}"
    folder = copy_demo(tmp_path, chat_template=template)
    async with deployment(model=folder) as d:
        for fields in (
            {"reasoning": "a"},
            {"reasoning_content": "a"},
            {"reasoning": "a", "reasoning_content": "b"},
        ):
            chat = [{"role": "assistant", "content": "x", **fields}]
            assert said(await d.chat(messages=chat)) == "<a|a>x"
        long = [{"role": "assistant", "content": "x", "reasoning": "a" * (CONTEXT * 40)}]
        refused(await d.chat(messages=long), "messages", "context length")
    async with deployment() as d:
        for name in ("reasoning", "reasoning_content"):
            chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", name: "a"}]
            refused(await d.chat(messages=chat), f"messages[1].{name}", "no place")
        assert (await d.chat(messages=[{**chat[1], "reasoning_content": ""}])).status_code == 200
        refused(await d.chat("x", documents=[{"text": "y"}]), "documents", "no place")


@pytest.mark.parametrize(
    ("template", "effort", "text"),
    [
        ("{{ reasoning_effort }}", "high", "high"),
        ("{{ reasoning_effort }}", "none", "none"),
        ("{{ reasoning_effort }}{{ enable_thinking }}", "low", "lowTrue"),
        ("{{ enable_thinking }}", "medium", "True"),
        ("{{ enable_thinking }}", "none", "False"),
        ("x", "none", "x"),
        ("{% if enable_thinking is defined %}a{% else %}b{% endif %}", None, "b"),
    ],
)
async def test_the_effort_of_reasoning_reaches_the_template(tmp_path, template, effort, text):
    async with deployment(model=copy_demo(tmp_path, chat_template=template)) as d:
        assert said(await d.chat("", reasoning_effort=effort)) == text
        if "enable_thinking" in template and effort == "none":
            told = {"chat_template_kwargs": {"enable_thinking": True}}
            assert said(await d.chat("", reasoning_effort=effort, **told)) == "True"


def test_an_effort_that_no_template_is_told(demo):
    answer = demo.chat("hi", reasoning_effort="high")
    refused(answer, "reasoning_effort", "chat template")
    assert answer.json()["error"]["code"] == "unsupported_parameter"
    refused(demo.chat("hi", reasoning_effort="much"), "reasoning_effort", "medium")


async def test_tool_calls_reach_the_template_with_arguments_as_objects(tmp_path):
    folder = copy_demo(
        tmp_path,
        chat_template="{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{{ c.function.arguments | tojson }};{% endfor %}{% endfor %}",
    )
    given = ['{"city": "Ulm"}', {"city": "Bonn"}, "{broken", "[1]", None]
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": one}} for one in given]
    async with deployment(model=folder) as d:
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        answer = (await d.chat(messages=[message, {"role": "assistant", "tool_calls": []}], temperature=0)).json()
        text = answer["choices"][0]["message"]["content"]
        assert text == 'f{"city": "Ulm"};f{"city": "Bonn"};f{};f{};f{};'


async def test_the_generation_config_bounds_an_answer_of_unsaid_length(tmp_path, monkeypatch):
    """As ``vllm serve`` has it: a default, not a limit."""
    folder = copy_demo(tmp_path)
    (folder / "generation_config.json").write_text('{"max_new_tokens": 5}')
    async with deployment(model=folder) as d:
        for fields, made in (({}, 5), ({"max_tokens": 7}, 7)):
            answer = (await d.chat("x", ignore_eos=True, **fields)).json()
            assert answer["usage"]["completion_tokens"] == made


async def test_an_engine_without_a_limit_of_logprobs(tmp_path, monkeypatch):
    start = MockEngine.start

    async def unlimited(self, transfer):
        return msgspec.structs.replace(await start(self, transfer), max_logprobs=-1)

    monkeypatch.setattr(MockEngine, "start", unlimited)
    async with deployment() as d:
        answer = (await d.chat("x", logprobs=True, top_logprobs=25, max_tokens=1)).json()
        assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 25
        refused(await d.chat("x", logprobs=True, top_logprobs=VOCABULARY + 1), "top_logprobs", f"{VOCABULARY}")


async def test_a_completion_tells_the_chosen_tokens_logprob_among_the_likeliest(monkeypatch):
    async def generate(self, request, embeddings):
        unlikely = [TokenLogprob(-3.0, [(token, -0.1) for token in (70, 71)][: request.sampling.logprobs])]
        yield TokenDelta([72], "length", prompt_tokens=1, logprobs=unlikely)

    monkeypatch.setattr(MockGenerating, "generate", generate)
    async with deployment() as d:
        for wanted in (0, 1, 2):
            logprobs = (await d.complete("x", logprobs=wanted)).json()["choices"][0]["logprobs"]
            (top,), (chosen,) = logprobs["top_logprobs"], logprobs["tokens"]
            assert len(top) == wanted + 1, "up to logprobs + 1 entries, says OpenAI's reference"
            assert top[chosen] == -3.0


async def test_the_generation_config_gives_defaults(tmp_path, monkeypatch):
    folder = copy_demo(tmp_path)
    (folder / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 7, "top_p": 0.8}')
    got = []
    generate = MockGenerating.generate
    monkeypatch.setattr(
        MockGenerating, "generate", lambda self, one, *more: got.append(one) or generate(self, one, *more)
    )
    async with deployment(model=folder) as d:
        await d.complete("x")
        await d.complete("x", temperature=0, top_k=0, top_p=1)
    assert [(r.sampling.temperature, r.sampling.top_k, r.sampling.top_p) for r in got] == [(0.3, 7, 0.8), (0, 0, 1)]
