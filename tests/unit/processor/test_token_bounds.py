"""What one token can stand for: no text has fewer tokens than is said, whatever it holds."""

import json
import random
import unicodedata
from fractions import Fraction

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from triptych.demo import MODEL_DIR
from triptych.processor.token_bounds import NFC_BYTES_A_CHARACTER, UNPROVEN_CHARACTERS, TokenBounds, token_bounds

CORPUS = ["hello world " * 9, " " * 64, "=" * 40, "naïve café ǖǖǖ", "漢字かな", "ABCDEFGHIJKLMNOP0123456789" * 3]


def byte_level(normalizer=None, added=()):
    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    fast.train_from_iterator(CORPUS * 20, trainer)
    if normalizer is not None:
        fast.normalizer = normalizer
    fast.add_special_tokens(["<|a_long_special_token|>", *added])
    return fast


def saved(fast, tmp_path, change=lambda file: None):
    file = json.loads(fast.to_str())
    change(file)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file))
    return path


def texts(chance):
    yield from ("", "<|a_long_special_token|>" * 50, " " * 5000, "=" * 999, "ǖ" * 300, "u\u0308\u0304" * 300)
    yield from ("\u1100\u1161\u11a8" * 200, "\u1f82" * 99, "\u03b1\u0313\u0300\u0345" * 99, "e\u0301" * 400)
    yield from ("ABCDEFGHIJKLMNOP" * 300, "0123456789" * 200)
    pieces = [*CORPUS, "\u0301", "u\u0308", "<|a_long_special_token|>", "\n\n", "😀", "\x00"]
    for _ in range(40):
        yield "".join(chance.choices(pieces, k=chance.randrange(1, 60)))


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_no_text_has_fewer_tokens(tmp_path, normalizer):
    fast = byte_level(normalizer)
    bounds = token_bounds(saved(fast, tmp_path))
    assert bounds.characters < UNPROVEN_CHARACTERS
    assert bounds.letters
    for text in texts(random.Random(1)):
        tokens = len(fast.encode(text, add_special_tokens=False).ids)
        for limit in (0, 3, tokens, 10 * tokens):
            assert bounds.fewest_tokens(text, limit) <= tokens


def test_the_demo_model(tmp_path):
    fast, bounds = Fast.from_file(str(MODEL_DIR / "tokenizer.json")), token_bounds(MODEL_DIR / "tokenizer.json")
    assert bounds.characters < 32
    for text in texts(random.Random(2)):
        assert bounds.fewest_tokens(text, 1) <= len(fast.encode(text, add_special_tokens=False).ids)


def test_letters_alone_are_told_more_closely(tmp_path):
    bounds = token_bounds(saved(byte_level(), tmp_path))
    assert bounds.letters < bounds.characters
    assert bounds.fewest_tokens("a" * 10_000, 300) == -(-10_000 // bounds.letters)
    assert bounds.fewest_tokens(" " * 10_000, 10) == -(-10_000 // bounds.characters)


def test_composition_leaves_so_many_bytes_of_a_character():
    ratios = (
        Fraction(len(chr(code).encode()), len(unicodedata.normalize("NFD", chr(code))))
        for code in range(0x110000)
        if not 0xD800 <= code < 0xE000 and unicodedata.is_normalized("NFC", chr(code))
    )
    assert min(ratios) == NFC_BYTES_A_CHARACTER


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
        lambda file: file.update(normalizer={"type": "NFKC"}),
        lambda file: file.update(pre_tokenizer={"type": "WhitespaceSplit"}),
        lambda file: file["added_tokens"][0].update(rstrip=True),
        lambda file: file["model"]["vocab"].pop("!"),
        lambda file: file.update(model={"type": "WordPiece", "vocab": {"[UNK]": 0}}),
        lambda file: file["model"].update(type="Unigram", vocab=[["a", 0.0]]),
        lambda file: file.update(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
                    file["pre_tokenizer"],
                ],
            }
        ),
    ],
)
def test_where_characters_may_vanish_nothing_is_claimed(tmp_path, change):
    assert token_bounds(saved(byte_level(), tmp_path, change)) == TokenBounds()


def test_sentencepiece_with_bytes(tmp_path):
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "▁▁▁▁": 257, "hello": 258}
    file = {
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": True},
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file))
    assert token_bounds(path) == TokenBounds(6, 5)
    del vocab["<0x0A>"]
    path.write_text(json.dumps(file))
    assert token_bounds(path) == TokenBounds()
