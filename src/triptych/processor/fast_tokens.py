"""Uses the ``fastokens`` library in place of ``tokenizers``, for checkpoints for which both give the same ids.

It encodes a megabyte in a fiftieth of the time, without holding the interpreter lock, and returns ids in one block of
memory instead of a list. It does not support every kind of tokenizer, so it is tried on texts of every kind when it is
loaded.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as Reference

from triptych.config.env import limit_tokenizer_threads
from triptych.contracts.tokens import TokenIds

log = logging.getLogger("triptych.tokenizer")

MIXED_CHARACTERS = 40_000
"""Length of the trial's long text. The library cuts long texts into pieces, which is to be tried too."""
_SAMPLES = (
    "",
    " ",
    "Hello, world! It's 12:30; don't you'll we've I'm HE'S.",
    "  leading, trailing and   inner   spaces   ",
    "\n\n\r\n\t\t \n  \r \u00a0\u2003\u3000\u200b\ufeff x\n \n",
    "def f(x: int) -> str:\n    return f\"{x!r:>10}\" if x != 0x1F else '\\n'  # comment\n\n\nclass A(B):\n\tpass\n",
    '{"key": [1, 2.5e-10, -3, null], "nested": {"a": "\\u00e9"}}\n</div><p class="x">&amp;</p>',
    "0 7 42 123 1234 12345 123456789012 3.14159 1,000,000 ½ ² ٣٤ Ⅻ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Où êtes-vous? ¿Qué? Źdźbło",
    "e\u0301 a\u0308\u0323 q\u0307\u0323 \u1100\u1161\u11a8 \u212b \ufb01 i\u0307 \u0bc6\u0bbe",
    "中文没有空格,標點符號。日本語のテキスト、カタカナ。한국어 문장입니다. ภาษาไทยไม่เว้นวรรค",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया",
    "😀👍🏽👩\u200d👩\u200d👧\u200d👦🇩🇪❤️ ‰ … — “quotes” «guillemets» \u202eright\u202c",
    "\x00\x01\x07\x08\x0b\x0c\x1b\x7f\x80\x9f\ufffd\ufffe\ue000\U0010ffff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + "=" * 70 + "-" * 33 + " " * 131 + "x" + "\n" * 19,
    "ACGTACGTTAGCCGATTACAGGGTTTACCCAGT http://a.example/b?c=d&e=%20f#g user@host.example /usr/lib/x.so.6",
    "<|endoftext|> <|im_start|>user\n<s> </s> [INST] <unk> <pad> [CLS] ▁x Ġy ##z <0x0A> <|not|special|>",
)


class FastTokens(Protocol):
    """The tokenizer of the fast library; see ``fastokens.Tokenizer``."""

    def encode_batch_flat(self, inputs: list[str], add_special_tokens: bool) -> tuple[bytes, bytes]: ...


def load_fast(path: Path, reference: Reference) -> FastTokens | None:
    """Loads the fast tokenizer of a ``tokenizer.json``.

    Returns None if the library cannot read the file, or differs from ``reference``. Blocks: call it in a thread.
    """
    limit_tokenizer_threads()
    try:
        import fastokens

        fast = fastokens.Tokenizer.from_file(str(path))
        fast.no_truncation()
        fast.no_padding()
        text = disagreement(fast, reference)
    except Exception as error:  # the library has only bare exceptions
        log.info("%s is read by `tokenizers` alone: %s", path, error)
        return None
    if text is not None:
        log.info("%s is read by `tokenizers` alone: `fastokens` gives other ids for %r", path, text[:80])
        return None
    return fast  # type: ignore[no-any-return]


def disagreement(fast: FastTokens, reference: Reference) -> str | None:
    """Returns the first trial text that ``fast`` encodes differently than ``reference``; None if there is none."""
    for text in trial_texts(reference):
        for special in (False, True):
            ids, _ = fast.encode_batch_flat([text], special)
            if TokenIds(ids) != TokenIds(reference.encode_batch_fast([text], add_special_tokens=special)[0].ids):
                return text
    return None


def trial_texts(reference: Reference) -> Iterator[str]:
    """Yields texts of every kind, the special tokens of ``reference`` in all surroundings, and one long mixture."""
    yield from _SAMPLES
    special = [token.content for token in reference.get_added_tokens_decoder().values()]
    yield "".join(special)
    for token in special[:64]:
        yield f"x{token}y {token} {token}\n{token}{token[:-1]}  {token}é{token.upper()}"
    rng = random.Random(0)
    pieces = [*_SAMPLES, *special[:64], *(" ".join(sample.split()) for sample in _SAMPLES)]
    parts: list[str] = []
    size = 0
    while size < MIXED_CHARACTERS:
        piece = rng.choice(pieces)
        begin = rng.randrange(len(piece) + 1)
        parts.append(piece[begin : begin + rng.randrange(1, 60)])
        size += len(parts[-1])
    yield "".join(parts)
