"""The unmodified ``openai`` client: what most users send, and what they catch."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest

from support.checkpoints import image_part, picture_url
from support.deployment import deployment

MESSAGES = [{"role": "user", "content": "Hello 😀"}]
EXPECTED = "user\nHello 😀\nassistant\n"


@pytest.fixture
def client(demo):
    # No TLS in these tests; a plain transport spares loading certificates for each client.
    http = httpx.Client(trust_env=False, verify=False)
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0, http_client=http) as one:
        yield one


def async_client(url, **settings):
    http = httpx.AsyncClient(trust_env=False, verify=False)
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", http_client=http, **{"api_key": "none", "max_retries": 0, **settings}
    )


def test_models(client):
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


def test_chat(client):
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
    assert answer.choices[0].message.content == EXPECTED
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_chat_streamed(client):
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == EXPECTED
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0


def test_the_streaming_helper(client):
    with client.chat.completions.stream(model="demo", messages=MESSAGES, temperature=0) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_completion()
    assert "content.delta" in kinds
    assert kinds[-1] == "content.done"
    assert answer.choices[0].message.content == EXPECTED


def test_chat_with_a_picture_and_logprobs(client):
    content = [image_part(picture_url(112, 112)), {"type": "text", "text": "What?"}]
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": content}],
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        extra_body={"top_k": 5, "ignore_eos": False},
    )
    assert answer.choices[0].message.content == "user\nWhat?\nassistant\n"
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_completions(client):
    answer = client.completions.create(model="demo", prompt=["one", "two"], temperature=0, echo=True)
    assert [choice.text for choice in answer.choices] == ["oneone", "twotwo"]
    stream = client.completions.create(model="demo", prompt="one", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "one"


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"model": "gone"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 3}, openai.BadRequestError, None),
        ({"max_tokens": 5000}, openai.BadRequestError, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 70_000_000}]}, openai.APIStatusError, "body_too_large"),
        (
            {"messages": [{"role": "user", "content": [image_part("data:text/plain,hi")]}]},
            openai.APIStatusError,
            "media_unsupported",
        ),
    ],
)
def test_errors_are_of_the_clients_classes(client, changes, error, code):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "demo", "messages": MESSAGES, **changes})
    assert caught.value.code == code
    assert caught.value.body["message"]


async def test_errors_of_a_guarded_and_of_an_empty_server():
    async with deployment(frontend={"api_key": "sesame"}) as d:
        async with async_client(d.url) as wrong:
            with pytest.raises(openai.AuthenticationError):
                await wrong.models.list()
        async with async_client(d.url, api_key="sesame") as right:
            assert [model.id async for model in right.models.list()] == ["demo"]
            await d.worker.drain()
            await d.ready(False)
            with pytest.raises(openai.InternalServerError) as caught:
                await right.chat.completions.create(model="demo", messages=MESSAGES)
            assert caught.value.status_code == 503
            assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_an_error_in_a_stream_is_raised_by_the_client():
    async with deployment(engine_args=("--itl-ms", "5")) as d, async_client(d.url) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=MESSAGES, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
        )
        got = 0
        with pytest.raises(openai.APIError) as caught:  # noqa: PT012 (the loop is what raises)
            async for _ in stream:
                got += 1
                if got == 5:
                    await d.worker.kill()
        assert got >= 5
        assert caught.value.code == "worker_lost"


async def test_async_whole_and_streamed_and_many_at_once():
    async with deployment(workers=2) as d, async_client(d.url) as client:

        async def whole(number):
            answer = await client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": f"w{number}"}], temperature=0
            )
            return answer.choices[0].message.content == f"user\nw{number}\nassistant\n"

        async def streamed(number):
            stream = await client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": f"s{number}"}], temperature=0, stream=True
            )
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            return text == f"user\ns{number}\nassistant\n"

        results = await asyncio.gather(*(call(n) for n in range(25) for call in (whole, streamed)))
        assert results == [True] * 50
        assert all(worker.engine.stats().generated_tokens for worker in d.workers), "both workers had work"


async def test_leaving_a_stream_early_ends_the_work():
    async with deployment(engine_args=("--itl-ms", "2")) as d, async_client(d.url) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=MESSAGES, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        assert d.worker.running == 1
        await stream.close()
        await d.worker.idle()
