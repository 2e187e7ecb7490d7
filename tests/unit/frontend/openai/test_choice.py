"""Deltas in, pieces out: counts, logprobs, stop strings and the end."""

import pytest

from triptych.contracts.answer import Timing, TokenDelta, TokenLogprob
from triptych.demo import MODEL_DIR
from triptych.frontend.openai.choice import Choice
from triptych.processor.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(str(MODEL_DIR))


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def choice(stops=(), **settings):
    return Choice(TOKENIZER, ids("prompt"), list(stops), **settings)


def deltas(text, reason="stop", **last):
    tokens = ids(text)
    return [TokenDelta([token]) for token in tokens[:-1]] + [TokenDelta([tokens[-1]], reason, **last)]


def test_text_and_reason():
    one = choice()
    pieces = one.push(deltas("hello there"))
    assert "".join(piece.text for piece in pieces) == "hello there"
    assert [piece.finish_reason for piece in pieces][-1] == "stop"
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    assert one.counts.completion == len(ids("hello there"))


def test_counts_come_with_the_first_delta_and_timing_with_the_last():
    one = choice()
    one.push([TokenDelta(ids("a"), prompt_tokens=50, cached_tokens=32)])
    one.push([TokenDelta(ids("b"), "stop", timing=Timing(decode_s=1.0))])
    assert (one.counts.prompt, one.counts.cached, one.timing.decode_s) == (50, 32, 1.0)


def test_a_token_that_ends_the_text_is_counted_and_not_said():
    one = choice()
    pieces = one.push([TokenDelta([*ids("bye"), *ids("x")[:1]], "stop", stop_token=True)])
    assert "".join(piece.text for piece in pieces) == "bye"
    assert one.counts.completion == len(ids("bye")) + 1


def test_what_ended_the_text_may_be_a_part_of_it():
    one = choice(keeps_stop=True)
    pieces = one.push([TokenDelta([*ids("bye"), *ids("x")[:1]], "stop", stop_token=True)])
    assert "".join(piece.text for piece in pieces) == "byex"
    one = choice(["there"], keeps_stop=True)
    logprobs = [TokenLogprob(-1.0)] * len(ids("hello there now"))
    pieces = one.push([TokenDelta(ids("hello there now"), "stop", logprobs=logprobs)])
    assert "".join(piece.text for piece in pieces) == "hello there"
    told = [position for piece in pieces for position in piece.logprobs]
    assert len(told) == len(ids("hello there"))


def test_an_empty_last_delta_ends_the_choice():
    one = choice()
    assert [p.finish_reason for p in one.push([TokenDelta([], "length")])] == ["length"]


def test_several_tokens_in_one_delta():
    one = choice()
    assert "".join(p.text for p in one.push([TokenDelta(ids("one two 😀"), "stop")])) == "one two 😀"


def test_after_a_stop_string_nothing_more_is_said():
    one = choice(["there"])
    pieces = one.push([*deltas("hello there you"), TokenDelta(ids("more"), "stop")])
    assert "".join(piece.text for piece in pieces) == "hello "
    assert (pieces[-1].finish_reason, one.finish_reason) == ("stop", "stop")
    assert one.counts.completion <= len(ids("hello there"))


@pytest.mark.parametrize("reason", ["stop", "length", "abort"])
def test_what_was_held_back_is_said_at_the_end(reason):
    one = choice(["theremin"])
    assert "".join(p.text for p in one.push(deltas("hello there", reason))) == "hello there"
    assert one.finish_reason == reason


def test_logprobs_wait_for_the_text_they_belong_to():
    entry = TokenLogprob(-0.5, [(1, -0.5)])
    one = choice()
    tokens = ids("😀!")
    pieces = one.push([TokenDelta([token], logprobs=[entry]) for token in tokens])
    pieces += one.push([TokenDelta([], "stop")])
    assert [(token, entry) for token in tokens] == [one[:2] for piece in pieces for one in piece.logprobs]
    assert len(pieces[0].logprobs) == 4, "four tokens made the first character"
