import pytest
from tokenizers.processors import TemplateProcessing

from support.checkpoints import VOCABULARY, byte_level, copy_demo, text_checkpoint
from triptych.contracts.errors import ConfigError
from triptych.demo import MODEL_DIR
from triptych.processor.tokenizer import Tokenizer

TEXTS = ["Hello", "  a\n\nb ", "漢字 😀 é", "<|im_start|>user\nhi<|im_end|>", "", "x" * 3000, "\u0301\u200d"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:12]))
def test_ids_equal_those_of_transformers(text):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(MODEL_DIR))
    ours = Tokenizer.load(str(MODEL_DIR))
    for special in (True, False):
        assert ours.encode(text, add_special_tokens=special) == theirs(text, add_special_tokens=special)["input_ids"]


def test_special_tokens_are_added_only_where_they_are_wanted(tmp_path):
    fast = byte_level()
    end = fast.token_to_id("<|end|>")
    fast.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", end)])
    ours = Tokenizer.load(str(text_checkpoint(tmp_path / "m", fast)))
    plain = ours.encode("hi", add_special_tokens=False)
    assert ours.encode("hi", add_special_tokens=True) == [end, *plain]


def test_a_tokenizer_that_truncates_or_pads_does_so_no_more(tmp_path):
    fast = byte_level()
    fast.enable_truncation(3)
    fast.enable_padding(length=10)
    ours = Tokenizer.load(str(text_checkpoint(tmp_path / "m", fast)))
    assert len(ours.encode("seven b", add_special_tokens=True)) == 7


def test_special_tokens_by_name():
    fast = Tokenizer.load(str(MODEL_DIR)).fast
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "add_bos_token": True}
    assert Tokenizer(fast, settings).special_tokens() == {"bos_token": "<s>", "eos_token": "</s>"}


def test_the_vocabulary_counts_added_tokens():
    assert Tokenizer.load(str(MODEL_DIR)).vocabulary_size == VOCABULARY


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer.json cannot be read"),
        ("tokenizer.json", '{"model": 5}', "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not a JSON object"),
    ],
)
def test_what_is_wrong_with_the_files_is_one_line(tmp_path, name, content, words):
    folder = copy_demo(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        Tokenizer.load(str(folder))
    assert "\n" not in str(caught.value)


def test_short_texts_of_prompts_are_tokenised_once():
    ours = Tokenizer.load(str(MODEL_DIR))
    ids = ours.plain("<0.5 seconds>")
    assert list(ids) == ours.encode("<0.5 seconds>", add_special_tokens=False)
    assert ours.plain("<0.5 seconds>") is ids, "the times of a video's steps are hundreds"
