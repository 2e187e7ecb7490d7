"""Each token's bytes, for every kind of vocabulary that is served."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from support.checkpoints import byte_level, sentencepiece_like
from triptych.demo import MODEL_DIR
from triptych.processor.token_bytes import Spelling, TokenBytes, spelled
from triptych.processor.tokenizer import Tokenizer as Ours

TEXTS = ["Hello, world", "é 😀 日本\u0000\u00ad\u200b", " two  spaces\n\ttab", "\ufffd", "👩‍👩‍👧"]
DEMO = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


def metaspace() -> Tokenizer:
    pieces = sentencepiece_like("▁Hello", "▁two")
    pieces.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    return pieces


KINDS = {
    "demo": DEMO,
    "byte-level": byte_level("日本é", "😀"),
    "sentencepiece": sentencepiece_like("▁Hello", "▁two"),
    "metaspace": metaspace(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_join_to_the_text(kind: str, text: str) -> None:
    fast, spelling = KINDS[kind], TokenBytes(KINDS[kind])
    ids = fast.encode(text, add_special_tokens=False).ids
    joined = b"".join(spelling(token).data for token in ids).decode()
    assert joined in (text, " " + text)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_whole_is_spelled_as_the_library_decodes_it(kind: str) -> None:
    fast, spelling = KINDS[kind], TokenBytes(KINDS[kind])
    added = fast.get_added_tokens_decoder()
    for token in range(fast.get_vocab_size()):
        text, data = spelling(token)
        assert spelling(token) is spelling(token)
        if token in added and added[token].special:
            assert (text, data) == (added[token].content, b"")
        elif "\ufffd" not in (decoded := fast.decode([token], skip_special_tokens=False)):
            assert text.strip(" ") == decoded.strip(" ")
            assert data.decode() == text
        else:
            assert text == "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def test_every_byte_has_a_token_of_its_own() -> None:
    for kind in ("byte-level", "sentencepiece"):
        spelling = TokenBytes(KINDS[kind])
        single = {one.data for token in range(KINDS[kind].get_vocab_size()) if len((one := spelling(token)).data) == 1}
        assert single == {bytes([byte]) for byte in range(256)}


def test_all_can_be_looked_up_at_once() -> None:
    spelling = TokenBytes(KINDS["demo"])
    spelling.fill()
    known = dict(spelling._known)
    assert len(known) == KINDS["demo"].get_vocab_size()
    spelling.fill()
    assert spelling._known == known


def test_added_tokens_are_their_own_text() -> None:
    fast = byte_level("hello")
    fast.add_tokens([AddedToken("<tool 日>", special=False), AddedToken("Ġx", special=False)])
    fast.add_special_tokens([AddedToken("<|日|>", special=True)])
    spelling = TokenBytes(fast)
    told = {text: spelling(fast.token_to_id(text)) for text in ("<tool 日>", "Ġx", "<|日|>")}
    assert told["<tool 日>"] == Spelling("<tool 日>", "<tool 日>".encode())
    assert told["Ġx"].text == fast.decode([fast.token_to_id("Ġx")]) == " x"
    assert told["<|日|>"] == Spelling("<|日|>", b"")


def test_an_id_that_stands_for_nothing_goes_by_its_number() -> None:
    spelling = Ours(DEMO, {}).spelling
    for token in (10**6, 4_000_000_000):
        assert spelling(token) == Spelling(f"token_id:{token}", b"")
    assert not spelling._known, "ids that are made up fill no memory"


def test_decoders_of_another_kind_are_asked() -> None:
    words = Tokenizer(models.WordLevel({"hello": 0, "日本": 1, "[UNK]": 2}, unk_token="[UNK]"))
    assert TokenBytes(words)(1) == Spelling("日本", "日本".encode())
    words.decoder = decoders.WordPiece()
    assert TokenBytes(words)(0) == Spelling("hello", b"hello")


def test_parts_of_characters_are_spelled_by_their_bytes() -> None:
    assert spelled(b"\xe4\xbd") == "bytes:\\xe4\\xbd"
    assert spelled(b" \xe4") == "bytes:\\x20\\xe4"
    assert spelled("�".encode()) == "�"
