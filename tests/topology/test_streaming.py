"""Server-sent events: their order, their end, and the exact text."""

from __future__ import annotations

import inspect
import random
import sys

import pytest

from support.checkpoints import byte_level, text_checkpoint
from support.deployment import deployment
from support.sse import parse
from triptych.planes.request.tcp_call import TcpCall

HARD = [
    "plain words",
    "  leading and trailing  ",
    "\n\n\tx\n",
    "👩‍👩‍👧‍👦🏳️‍🌈😀😀",
    "e\u0301a\u0308 n\u0303",
    "漢字かな交じり文",
    "mixed 😀 é 漢 \u200b end",
    "العربية עברית",
]


@pytest.mark.parametrize("text", HARD)
def test_joined_deltas_are_the_whole_answer(demo, text):
    whole = demo.chat(text).json()["choices"][0]["message"]["content"]
    stream = parse(demo.chat(text, stream=True).content)
    assert stream.text() == whole == f"user\n{text}\nassistant\n"
    assert not any("\ufffd" in delta for delta in stream.deltas()), "no delta breaks a character"


def test_the_order_of_events(demo):
    stream = parse(demo.chat("Hello there", stream=True).content)
    first, *middle, last = stream.chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in middle), "the role comes once, first"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *middle])
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert stream.done, "[DONE] ends the stream"
    heads = {(c["id"], c["object"], c["created"], c["model"]) for c in stream.chunks}
    assert len(heads) == 1, "every chunk is of the same answer"
    assert next(iter(heads))[1] == "chat.completion.chunk"
    assert not any("usage" in chunk for chunk in stream.chunks), "nobody asked for usage"


def test_a_delta_for_every_token_that_completes_text(demo):
    stream = parse(demo.chat("one two three", stream=True).content)
    assert len(stream.deltas()) > 5, "tokens are not gathered up before they are sent"


def test_headers_of_a_stream(demo):
    answer = demo.chat("hi", stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_include_usage(demo, ask):
    whole = getattr(demo, ask)("Hello").json()["usage"]
    stream = parse(getattr(demo, ask)("Hello", stream=True, stream_options={"include_usage": True}).content)
    assert stream.chunks[-1]["choices"] == [], "usage comes in a last chunk of its own"
    assert stream.chunks[-1]["usage"] == whole
    assert all(chunk["usage"] is None for chunk in stream.chunks[:-1])
    assert stream.done


def test_completions_stream_text_and_reason(demo):
    stream = parse(demo.complete("Hello 😀 there", stream=True).content)
    assert stream.text() == "Hello 😀 there"
    assert stream.finish_reason() == "stop"
    assert {chunk["object"] for chunk in stream.chunks} == {"text_completion"}
    assert stream.done


@pytest.mark.parametrize("stop", ["there", "ere b", "e", " ", "\n", "😀", "he end", ["zzz", "be"], ["be", "there"]])
@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_stop_strings_never_leak(demo, ask, stop):
    prompt = "hello there be 😀\nthe end"
    full = f"user\n{prompt}\nassistant\n" if ask == "chat" else prompt
    stops = [stop] if isinstance(stop, str) else stop
    expected = full[: min(full.index(one) for one in stops if one in full)]
    whole = getattr(demo, ask)(prompt, stop=stop, max_tokens=200).json()["choices"][0]
    assert (whole["message"]["content"] if ask == "chat" else whole["text"]) == expected
    assert whole["finish_reason"] == "stop"
    stream = parse(getattr(demo, ask)(prompt, stop=stop, max_tokens=200, stream=True).content)
    assert stream.text() == expected
    assert stream.finish_reason() == "stop"


def test_text_that_only_begins_like_a_stop_string_is_passed_on(demo):
    for stream in (False, True):
        answer = demo.complete("abc abd ab", stop=["abe", "ab!"], stream=stream, max_tokens=50)
        text = parse(answer.content).text() if stream else answer.json()["choices"][0]["text"]
        assert text == "abc abd ab"


def test_a_stop_string_in_the_middle_ends_the_workers_work(demo):
    engine = demo.deployed.worker.engine
    before = engine.stats().generated_tokens
    answer = demo.complete("a stop b", stop="stop", ignore_eos=True, max_tokens=4000)
    assert answer.json()["choices"][0]["text"] == "a "
    assert engine.stats().generated_tokens - before < 2000, "the worker was told to stop"


def test_stop_strings_count_only_after_min_tokens(demo):
    early = demo.complete("x y x y x y", stop="y").json()
    assert early["choices"][0]["text"] == "x "
    late = demo.complete("x y x y x y", stop="y", min_tokens=5).json()
    assert late["usage"]["completion_tokens"] >= 5
    assert late["choices"][0]["text"].startswith("x y x")


async def test_characters_split_over_tokens_of_any_kind(tmp_path):
    """A tokenizer whose merges end inside of characters; random texts of hard characters."""
    rng = random.Random(7)
    letters = "aé漢😀🏳️‍🌈\u0301 \nß👍🏽"
    texts = ["".join(rng.choice(letters) for _ in range(30)) for _ in range(12)]
    folder = text_checkpoint(tmp_path / "m", byte_level(*texts[:3]))
    async with deployment(model=folder) as d:
        for text in texts:
            whole = (await d.complete(text, max_tokens=120, temperature=0)).json()["choices"][0]["text"]
            assert whole == text
            answer = await d.complete(text, max_tokens=120, temperature=0, stream=True)
            deltas = parse(answer.content).deltas()
            assert "".join(deltas) == text
            assert not any("\ufffd" in delta for delta in deltas)


def test_an_answer_cut_inside_of_a_character_says_so_at_its_end_only(demo):
    whole = demo.complete("😀😀", max_tokens=6).json()
    assert whole["choices"][0]["text"] == "😀\ufffd", "four tokens a character: the second is half there"
    stream = parse(demo.complete("😀😀", max_tokens=6, stream=True).content)
    assert stream.deltas() == ["😀", "\ufffd"]
    assert stream.finish_reason() == "length"


def test_several_choices_are_streamed_side_by_side(demo):
    stream = parse(demo.chat("Hello you", stream=True, n=3).content)
    whole = [c["message"]["content"] for c in demo.chat("Hello you", n=3).json()["choices"]]
    assert [stream.text(index) for index in range(3)] == whole
    for index in range(3):
        assert stream.choices(index)[0]["delta"].get("role") == "assistant", "the role first, for each choice"
        assert stream.finish_reason(index) == "stop"
    assert stream.done


def test_usage_of_several_choices_counts_the_prompt_once(demo):
    one = demo.chat("Hello").json()["usage"]
    three = demo.chat("Hello", n=3).json()["usage"]
    assert three["prompt_tokens"] == one["prompt_tokens"]
    assert three["completion_tokens"] == 3 * one["completion_tokens"]


def test_errors_before_the_first_token_have_their_status(demo):
    answer = demo.chat("x", stream=True, max_tokens=0)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("spans", "engine_args"), [(["epd"], ()), (["p", "d"], ()), (["p", "d"], ("--hand-off", "rendezvous"))]
)
async def test_a_token_passes_three_generators_from_the_socket_to_the_client(spans, engine_args, monkeypatch):
    """Each takes its time for every token. What reads the socket looks up who waits for it."""
    read, depths = TcpCall.__anext__, set()

    async def counted(call):
        batch = await read(call)
        depths.add(sum(bool(frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR) for frame in frames()))
        return batch

    def frames():
        frame = sys._getframe(2)
        while frame is not None:
            yield frame
            frame = frame.f_back

    async with deployment(spans=spans, engine_args=engine_args) as d:
        monkeypatch.setattr(TcpCall, "__anext__", counted)
        assert parse((await d.chat("x", stream=True)).content).done
        assert parse((await d.chat("x", stream=True, n=2)).content).done
    assert max(depths) == 3
