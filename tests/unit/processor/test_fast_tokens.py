"""The faster tokenizer is used where it gives the ids of the other one, and nowhere else."""

import json
import random
import sys

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers

from support.checkpoints import text_checkpoint
from triptych.demo import MODEL_DIR
from triptych.processor import fast_tokens
from triptych.processor.fast_tokens import disagreement, load_fast, trial_texts
from triptych.processor.tokenizer import Tokenizer


def test_the_demo_model_is_read_by_it():
    tokenizer = Tokenizer.load(str(MODEL_DIR), for_prompts=True)
    assert tokenizer.by == "fastokens"
    chance = random.Random(5)
    for text in trial_texts(tokenizer.fast):
        cut = text[chance.randrange(len(text) + 1) :]
        for special in (False, True):
            expected = tokenizer.encode(cut, add_special_tokens=special)
            assert tokenizer.prompt(cut, add_special_tokens=special).tolist() == expected
    assert Tokenizer.load(str(MODEL_DIR)).by == "tokenizers"


class Wrong:
    """Gives other ids for texts with ``culprit`` in them."""

    def __init__(self, fast, culprit):
        self._fast, self._culprit = fast, culprit

    def encode_batch_flat(self, inputs, add_special_tokens):
        text = inputs[0].replace(self._culprit, "")
        return self._fast.encode_batch_flat([text], add_special_tokens)


@pytest.mark.parametrize("culprit", ["é", "\u0301", "中", "\x1b", "\u200d", "\n\n\r", "   ", "123", "<|im_end|>", "Ⅻ"])
def test_other_ids_for_one_kind_of_text_are_noticed(culprit):
    reference = Fast.from_file(str(MODEL_DIR / "tokenizer.json"))
    fast = load_fast(MODEL_DIR / "tokenizer.json", reference)
    assert disagreement(fast, reference) is None
    assert any(culprit in text for text in trial_texts(reference))
    if reference.encode(culprit).ids:
        assert disagreement(Wrong(fast, culprit), reference) is not None


def test_what_it_cannot_read_is_read_by_the_other_one(tmp_path, caplog):
    fast = Fast(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = str(text_checkpoint(tmp_path / "m", fast))
    with caplog.at_level("INFO", logger="triptych.tokenizer"):
        tokenizer = Tokenizer.load(folder, for_prompts=True)
    assert tokenizer.by == "tokenizers"
    assert "tokenizers" in caplog.text
    assert tokenizer.prompt("a b a x", add_special_tokens=False).tolist() == [0, 1, 0, 2]


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    tokenizer = Tokenizer.load(str(MODEL_DIR), for_prompts=True)
    assert tokenizer.by == "tokenizers"
    assert tokenizer.prompt("hello", add_special_tokens=False).tolist() == tokenizer.encode(
        "hello", add_special_tokens=False
    )


def test_settings_of_the_file_that_cut_or_fill_do_not_hold(tmp_path):
    file = json.loads((MODEL_DIR / "tokenizer.json").read_text())
    file["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    file["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file))
    tokenizer = Tokenizer.load(str(tmp_path), for_prompts=True)
    plain = Tokenizer.load(str(MODEL_DIR))
    text = "many words, more than four of them " * 3
    assert tokenizer.prompt(text, add_special_tokens=False).tolist() == plain.encode(text, add_special_tokens=False)
    assert fast_tokens.MIXED_CHARACTERS > 16_384
