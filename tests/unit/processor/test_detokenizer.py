"""Tokens to text: piece by piece it is what decoding all of it at once gives, and no character is broken."""

import random

import pytest
from tokenizers import AddedToken

from support.checkpoints import byte_level, sentencepiece_like
from triptych.demo import MODEL_DIR
from triptych.processor.detokenizer import Detokenizer
from triptych.processor.tokenizer import Tokenizer

TEXTS = ["Hello there", "👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301a\u0308", "漢字 かな", "  a  b\n\n\t", "ß😀x😀", "\ufffd real"]


def tokenizers():
    yield "demo", Tokenizer.load(str(MODEL_DIR))
    yield "byte level", Tokenizer(byte_level(*TEXTS), {})
    yield "sentencepiece", Tokenizer(sentencepiece_like("▁Hello", "▁there", "▁a", "▁b", "ss"), {})


NAMED = dict(tokenizers())


@pytest.fixture(params=NAMED)
def tokenizer(request):
    return NAMED[request.param]


def pieces_of(tokenizer, ids, prompt=()):
    one = Detokenizer(tokenizer, list(prompt))
    return [*(one.push(token) for token in ids), one.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_decoded_whole(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_after_a_prompt_the_pieces_are_what_the_prompt_lacked(tokenizer, text):
    prompt = tokenizer.encode("Hello there", add_special_tokens=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode([*prompt, *ids])
    assert "".join(pieces_of(tokenizer, ids, prompt)) == whole.removeprefix(tokenizer.decode(prompt))


@pytest.mark.parametrize("tokenizer", ["demo", "byte level"], indirect=True)
def test_random_tokens_say_what_decoding_says(tokenizer):
    """Any ids, also such that make no valid text; special tokens are not a part of the text.

    (A SentencePiece decoder looks at a whole run of bytes: no text that is sent as it comes can equal that.)
    """
    rng = random.Random(6)
    for _ in range(60):
        ids = [rng.randrange(tokenizer.vocabulary_size) for _ in range(rng.randrange(1, 40))]
        joined = "".join(pieces_of(tokenizer, ids))
        whole = tokenizer.decode(ids)
        assert joined.replace("\ufffd", "") == whole.replace("\ufffd", ""), ids


def test_an_id_outside_of_the_vocabulary_ends_nothing(tokenizer):
    ids = tokenizer.encode("Hello", add_special_tokens=False)
    pieces = pieces_of(tokenizer, [*ids, 10**6, *ids])
    assert "".join(pieces).count("Hello") == 2


def test_a_half_character_is_told_at_the_end():
    tokenizer = NAMED["demo"]
    ids = tokenizer.encode("ok😀", add_special_tokens=False)
    pieces = pieces_of(tokenizer, ids[:-1])
    assert pieces[-1] == "\ufffd"
    assert "".join(pieces[:-1]) == "ok"


@pytest.mark.parametrize("tokenizer", ["demo", "byte level", "sentencepiece"], indirect=True)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_the_prompt_began_is_said_whole_and_nothing_else_of_the_prompt(tokenizer, cut):
    ids = tokenizer.encode("well 🜚!", add_special_tokens=False)
    begin = next(place for place in range(len(ids)) if "\ufffd" in tokenizer.decode(ids[: place + 1]))
    prompt, rest = ids[: begin + cut], ids[begin + cut :]
    begun = tokenizer.decode(prompt).endswith("\ufffd")
    assert "".join(pieces_of(tokenizer, rest, prompt)) == ("🜚!" if begun else "!")
    assert "".join(pieces_of(tokenizer, [], prompt)) == "", "nothing was said"


@pytest.mark.parametrize("tokenizer", ["demo", "byte level"], indirect=True)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_bytes_before_the_character_that_the_prompt_began_are_not_said(tokenizer, cut):
    by_byte = {tokenizer.spelling(token).data: token for token in reversed(range(tokenizer.vocabulary_size))}
    character = [by_byte[bytes([byte])] for byte in "🜚".encode()]
    broken = [by_byte[b"\xff"], by_byte[b"\xa9"]]
    prompt = [*tokenizer.encode("well ", add_special_tokens=False), *broken, *character[:cut]]
    assert pieces_of(tokenizer, character[cut:], prompt)[-2:] == ["🜚", ""]


@pytest.mark.parametrize("tokenizer", ["demo", "byte level"], indirect=True)
def test_a_prompt_that_ends_in_invalid_bytes_adds_nothing_to_the_answer(tokenizer):
    by_byte = {tokenizer.spelling(token).data: token for token in reversed(range(tokenizer.vocabulary_size))}
    for broken in (b"\xa9", b"\xff", b"\xa9\xa9\xa9\xa9\xa9\xa9\xa9", b"x\x80", b"\xe6\xff"):
        prompt = [*tokenizer.encode("Hello", add_special_tokens=False), *(by_byte[bytes([byte])] for byte in broken)]
        ids = tokenizer.encode("there", add_special_tokens=False)
        assert "".join(pieces_of(tokenizer, ids, prompt)) == "there", broken


def test_the_first_word_of_an_answer_keeps_its_space():
    tokenizer = NAMED["sentencepiece"]
    prompt = tokenizer.encode("Hello", add_special_tokens=False)
    [there] = [tokenizer.fast.token_to_id("▁there")]
    assert pieces_of(tokenizer, [there], prompt) == [" there", ""]
    assert pieces_of(tokenizer, [there]) == ["there", ""], "at the very beginning there is none"


def test_bytes_that_fall_back_are_put_together():
    tokenizer = NAMED["sentencepiece"]
    ids = tokenizer.encode("a😀b", add_special_tokens=False)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == "a😀b"
    assert "😀" in "".join(pieces)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("silent", [63, 64, 65, 200])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_long_run_of_special_tokens_is_not_kept(silent, at):
    """With ``ignore_eos`` a model may say nothing else; each step must stay as cheap as the first."""
    for fast, text in ((byte_level("漢字 かな"), "漢字 かな"), (sentencepiece_like("▁Hello", "▁there"), "Hello there")):
        fast.add_special_tokens([AddedToken("<end>", special=True)])
        one = Tokenizer(fast, {})
        ids, end = one.encode(text, add_special_tokens=False), fast.token_to_id("<end>")
        for prompt in ([], ids):
            stream = Detokenizer(one, prompt)
            said = [stream.push(token) for token in [*ids[:at], *[end] * silent]]
            if "\ufffd" not in one.decode(ids[:at]):  # an incomplete character is waited for
                assert len(stream._held) < 70
            said += [*(stream.push(token) for token in ids[at:]), stream.flush()]
            assert "".join(said) == "".join(pieces_of(one, ids, prompt))


def test_a_token_that_the_library_cannot_place_begins_a_new_stream():
    """A SentencePiece decoder makes other text of bytes once it knows what follows them."""
    tokenizer = NAMED["sentencepiece"]
    ids = [tokenizer.fast.token_to_id(token) for token in ("<0x55>", "<0xB8>", "▁a", "▁b")]
    assert pieces_of(tokenizer, ids) == ["U", "", "a", " b", ""]
    assert pieces_of(tokenizer, ids[:3]) == ["U", "", "a", ""], "it is said once"
