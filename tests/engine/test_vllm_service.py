"""What else vLLM must do behind the API: parameters, refusals, cancelling; and it stays healthy throughout."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import httpx
import openai
import pytest
from engine_support import Served, data_url
from tokenizers import Tokenizer

from support.loops import SOON_S
from support.reference import Reference, picture
from triptych.demo import MODEL_DIR

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=120)


def test_json_schema_constrains_the_answer(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "maximum": 9}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=200,
        temperature=0,
        logit_bias=dict.fromkeys(_whitespace(), -100),  # a random model would indent for ever
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    )
    said = json.loads(answer.choices[0].message.content or "")
    assert said["colour"] in ("red", "blue")
    assert isinstance(said["count"], int)


def test_an_impossible_schema_is_refused_and_harms_nothing(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "no-such"}}},
        )
    assert refused.value.body["type"] == "invalid_request_error"
    assert client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3).usage.completion_tokens <= 3


def test_logprobs_are_those_of_the_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=5, temperature=0, logprobs=True, top_logprobs=4
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for position in content:
        assert len(position.top_logprobs) == 4
        assert position.top_logprobs[0].logprob == pytest.approx(position.logprob)  # greedy takes the likeliest
        assert sum(math.exp(other.logprob) for other in position.top_logprobs) <= 1.0001
    said = b"".join(bytes(position.bytes) for position in content)
    assert said.decode(errors="replace") == answer.choices[0].message.content


def test_seed_repeats_and_choices_differ(client: openai.OpenAI) -> None:
    def draw() -> list[str]:
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=12, temperature=1.5, seed=5, n=3
        )
        return [choice.message.content or "" for choice in answer.choices]

    first = draw()
    assert len(set(first)) == 3, "choices of one seed must differ from each other"
    assert draw() == first, "the same seed must give the same choices"


def test_logit_bias_bans_and_forces(client: openai.OpenAI) -> None:
    settings = {"model": "tiny", "messages": HELLO, "max_tokens": 4, "temperature": 0, "logprobs": True}
    plain = client.chat.completions.create(**settings).choices[0].logprobs.content
    forced = client.chat.completions.create(**settings, logit_bias={"65": 100}).choices[0].logprobs.content
    assert len({position.token for position in forced}) == 1
    assert [position.token for position in forced] != [position.token for position in plain]


def test_repeated_prompt_reports_cached_tokens(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "A green star above a red circle. " * 12}]
    client.chat.completions.create(model="tiny", messages=long, max_tokens=2)
    again = client.chat.completions.create(model="tiny", messages=long, max_tokens=2)
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_usage_counts_expanded_pictures(client: openai.OpenAI) -> None:
    """112 x 112 pixels are 8 x 8 patches, merged by 2 x 2: 16 tokens in place of one placeholder."""
    text = client.chat.completions.create(model="tiny", messages=[_with([])], max_tokens=1)
    small = client.chat.completions.create(model="tiny", messages=[_with([picture(1, 112, 112)])], max_tokens=1)
    assert small.usage.prompt_tokens - text.usage.prompt_tokens == 16 + 2  # and its start and end tokens


def test_a_damaged_picture_is_refused_and_harms_nothing(client: openai.OpenAI) -> None:
    whole = data_url(picture(3, 300, 300))
    head, _, data = whole.partition(",")
    cut = f"{head},{data[: len(data) // 8 * 4]}"
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": cut}}]}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=[message], max_tokens=1)
    assert "damaged" in refused.value.message
    assert client.chat.completions.create(model="tiny", messages=[_with([picture(1)])], max_tokens=1)


def test_leaving_early_frees_the_engine(served: Served) -> None:
    """A closed connection ends the work: nothing is in flight shortly after, streamed or not."""
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 1500, "ignore_eos": True}
    with httpx.Client(base_url=served.url.removesuffix("/v1"), timeout=60) as http:
        with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            next(response.iter_lines())
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=body, timeout=0.5)
        _until(lambda: http.get("/health").json()["requests_in_flight"] == 0)
        begun = time.perf_counter()
        http.post("/v1/chat/completions", json={**body, "max_tokens": 5}).raise_for_status()
        assert time.perf_counter() - begun < SOON_S, "the engine still works on requests whose clients left"


def test_stop_token_ids_end_the_answer(client: openai.OpenAI, reference: Reference) -> None:
    ids = reference.answer([{"role": "user", "content": [{"type": "text", "text": "hello"}]}], [], 12)
    stop = ids[4]
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0, extra_body={"stop_token_ids": [stop]}
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == reference.text(ids[: ids.index(stop)])


def _whitespace() -> list[str]:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    return [str(i) for i in range(tokenizer.get_vocab_size()) if tokenizer.decode([i]).isspace()]


def _with(pictures: list) -> dict:
    parts = [{"type": "image_url", "image_url": {"url": data_url(one)}} for one in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}


def _until(condition: Callable[[], bool], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"


def test_the_stop_token_may_be_a_part_of_the_answer(client: openai.OpenAI, reference: Reference) -> None:
    ids = reference.answer([{"role": "user", "content": [{"type": "text", "text": "hello"}]}], [], 12)
    fields = {"stop_token_ids": [ids[4]], "include_stop_str_in_output": True}
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0, extra_body=fields
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == reference.text(ids[: ids.index(ids[4]) + 1])


def test_only_allowed_tokens_are_drawn(client: openai.OpenAI, reference: Reference) -> None:
    """As transformers draws them, whose ``generate`` may be told which tokens there are."""
    allowed = [33, 65, 66, 77, 101, 120, 150, 200]
    model, processor = reference._parts
    prompt = processor.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
    inputs = processor.tokenizer(prompt, return_tensors="pt")
    made = model.generate(
        **inputs, max_new_tokens=8, do_sample=False, prefix_allowed_tokens_fn=lambda *_: allowed
    )  # fmt: skip
    ids = made[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(set(ids)) > 1
    settings = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "temperature": 0}
    for fields in ({}, {"min_tokens": 8}):
        answer = client.chat.completions.create(**settings, extra_body={"allowed_token_ids": allowed, **fields})
        assert answer.choices[0].message.content == reference.text(ids)
