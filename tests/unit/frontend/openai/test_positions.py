"""What log probabilities tell of each token: bytes that join to the text, and where it begins."""

from __future__ import annotations

import itertools
import random

import pytest

from support.checkpoints import byte_level, sentencepiece_like
from triptych.contracts.answer import TokenDelta, TokenLogprob
from triptych.demo import MODEL_DIR
from triptych.frontend.openai.chat.answers import ChatAnswer
from triptych.frontend.openai.choice import Choice
from triptych.frontend.openai.completions.answers import CompletionAnswer
from triptych.frontend.openai.text_offsets import Position
from triptych.processor.tokenizer import Tokenizer

KINDS = {
    "demo": Tokenizer.load(str(MODEL_DIR)),
    "byte-level": Tokenizer(byte_level("日本é", "a😀b", " ünder"), {}),
    "sentencepiece": Tokenizer(sentencepiece_like("▁Hello", "▁two", "▁日"), {}),
}
TEXTS = ["Hello two 日本!", "é 😀 日本", "a😀b 👩‍👩‍👧 ünder", "plain", "😀"]
ENTRY = TokenLogprob(-0.5, [])


def told(
    tokenizer: Tokenizer,
    tokens: list[int],
    stops: tuple[str, ...] = (),
    prompt: tuple[int, ...] = (),
    step: int = 1,
    *,
    keeps_stop: bool = False,
) -> tuple[str, list[Position], list[tuple[str, list[Position]]]]:
    """(text, positions, both by piece) of an answer that comes in deltas of ``step`` tokens."""
    choice = Choice(tokenizer, list(prompt), list(stops), keeps_stop=keeps_stop)
    deltas = [
        TokenDelta(part := tokens[at : at + step], logprobs=[ENTRY] * len(part)) for at in range(0, len(tokens), step)
    ]
    pieces = choice.push([*deltas, TokenDelta([], "length")])
    by_piece = [(piece.text, piece.logprobs) for piece in pieces]
    return "".join(text for text, _ in by_piece), [one for _, some in by_piece for one in some], by_piece


def joined(positions: list[Position]) -> bytes:
    return b"".join(one.data for one in positions)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("step", [1, 3])
def test_bytes_join_to_the_text_and_offsets_count_its_characters(kind: str, text: str, step: int) -> None:
    tokenizer = KINDS[kind]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    said, positions, by_piece = told(tokenizer, tokens, step=step)
    assert joined(positions) == said.encode()
    assert [one.token for one in positions] == tokens
    before = 0
    for one in positions:
        whole = said.encode()[:before].decode(errors="ignore")
        assert one.offset == len(whole)
        before += len(one.data)
        if not one.text.startswith("bytes:"):
            assert said[one.offset :].startswith(one.text)
    text_so_far = bytes_so_far = b""
    for part, some in by_piece:
        text_so_far, bytes_so_far = text_so_far + part.encode(), bytes_so_far + joined(some)
        assert text_so_far == bytes_so_far, "a piece's positions are those of its text"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("keeps", [False, True])
def test_a_stop_string_ends_the_bytes_where_it_ends_the_text(kind: str, text: str, keeps: bool) -> None:
    tokenizer = KINDS[kind]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    for begin, length in itertools.product(range(len(text)), (1, 2, 3)):
        stop = text[begin : begin + length]
        said, positions, by_piece = told(tokenizer, tokens, stops=(stop,), keeps_stop=keeps)
        assert said.endswith(stop) if keeps else stop not in said
        assert joined(positions) == said.encode(), (stop, said, positions)
        shown = told_so_far = 0
        for part, some in by_piece:
            shown, told_so_far = shown + len(part.encode()), told_so_far + len(joined(some))
            assert told_so_far <= shown, "nothing is told of text that is held back"


def test_the_bytes_of_random_tokens_join_to_the_text() -> None:
    chance = random.Random(7)
    for tokenizer in KINDS.values():
        size = tokenizer.vocabulary_size
        for _ in range(200):
            tokens = [chance.randrange(size) for _ in range(12)]
            prompt = tuple(chance.randrange(size) for _ in range(chance.randrange(7)))
            said, positions, _ = told(tokenizer, tokens, prompt=prompt)
            assert [one.token for one in positions] == tokens
            assert all(one.offset <= one.end <= len(said) for one in positions)
            assert [one.offset for one in positions] == sorted(one.offset for one in positions)
            assert joined(positions) == said.encode()


def test_special_tokens_are_told_and_have_no_bytes() -> None:
    tokenizer = KINDS["demo"]
    tokens = tokenizer.encode("a<|im_end|>b<|im_end|>", add_special_tokens=False)
    said, positions, _ = told(tokenizer, tokens)
    assert said == "ab"
    assert [(one.text, one.data, one.offset) for one in positions] == [
        ("a", b"a", 0),
        ("<|im_end|>", b"", 1),
        ("b", b"b", 1),
        ("<|im_end|>", b"", 2),
    ]


def test_a_space_that_is_dropped_at_the_beginning_is_not_told() -> None:
    tokenizer = KINDS["sentencepiece"]
    tokens = tokenizer.encode("Hello two", add_special_tokens=False)
    said, positions, _ = told(tokenizer, tokens)
    assert said == "Hello two"
    assert joined(positions) == b"Hello two"
    assert positions[0].text == "Hello"
    after, positions, _ = told(tokenizer, tokens, prompt=tuple(tokens))
    assert after == " Hello two"
    assert joined(positions) == b" Hello two"


@pytest.mark.parametrize(
    ("kind", "bytes_", "said", "told_as"),
    [
        ("byte-level", b"a\xe6", "a\ufffd", ["a", "\ufffd"]),
        ("byte-level", b"\xa9x", "\ufffdx", ["\ufffd", "x"]),
        ("byte-level", b"\xf0\x9f\x98", "\ufffd", ["\ufffd", "", ""]),
        ("byte-level", b"\xa9\xf0\x9f\x98\x80", "\ufffd😀", ["\ufffd", b"\xf0", b"\x9f", b"\x98", b"\x80"]),
        ("byte-level", b"\xe6\xf0\x9f!", "\ufffd\ufffd!", ["\ufffd", "\ufffd", "", "!"]),
        ("sentencepiece", b"\xe6\x97", "\ufffd\ufffd", ["\ufffd", "\ufffd"]),
    ],
)
def test_what_never_became_a_character_is_told_as_the_text_has_it(
    kind: str, bytes_: bytes, said: str, told_as: list[str | bytes]
) -> None:
    tokenizer = KINDS[kind]
    by_byte = {tokenizer.spelling(token).data: token for token in reversed(range(tokenizer.vocabulary_size))}
    text, positions, _ = told(tokenizer, [by_byte[bytes([byte])] for byte in bytes_])
    assert text == said
    assert [one.data for one in positions] == [one.encode() if isinstance(one, str) else one for one in told_as]
    broken = {one.text for one in positions if one.text.startswith("bytes:")}
    assert broken == {f"bytes:\\x{byte:02x}" for byte in bytes_ if byte > 127}, "which bytes there were is spelled"


def byte_tokens(tokenizer: Tokenizer, *bytes_: int) -> list[int]:
    return [tokenizer.fast.token_to_id(f"<0x{byte:02X}>") for byte in bytes_]


def test_alternatives_have_keys_of_their_own() -> None:
    tokenizer = KINDS["sentencepiece"]
    letter = tokenizer.fast.token_to_id("H")
    first, second, same = byte_tokens(tokenizer, 0xE6, 0xE7, ord("H"))
    entry = TokenLogprob(-0.1, [(letter, -0.1), (first, -1.0), (second, -2.0), (same, -3.0)])
    answer = CompletionAnswer("m", tokenizer, null_usage=False, echoes=[""])
    position = Position(letter, entry, "H", b"H", 0, 1)
    (top,) = answer.logprob_lists(0, [position])["top_logprobs"]
    assert top == {"H": -0.1, "bytes:\\xe6": -1.0, "bytes:\\xe7": -2.0, f"token_id:{same}": -3.0}
    unlikely = Position(same, entry, "H", b"H", 0, 1)
    (top,) = answer.logprob_lists(0, [unlikely])["top_logprobs"]
    assert top[f"token_id:{letter}"] == -0.1
    assert top["H"] == -3.0
    assert len(top) == 4


def test_chat_tells_the_bytes_of_alternatives() -> None:
    tokenizer = KINDS["sentencepiece"]
    (first,) = byte_tokens(tokenizer, 0xE6)
    entry = TokenLogprob(-0.1, [(first, -0.1), (2, -1.0)])
    answer = ChatAnswer("m", tokenizer, null_usage=False)
    (told_of,) = answer.logprob_lists(0, [Position(first, entry, "bytes:\\xe6", b"\xe6", 0, 0)])["content"]
    assert told_of == {
        "token": "bytes:\\xe6",
        "logprob": -0.1,
        "bytes": [0xE6],
        "top_logprobs": [
            {"token": "bytes:\\xe6", "logprob": -0.1, "bytes": [0xE6]},
            {"token": "</s>", "logprob": -1.0, "bytes": []},
        ],
    }
