"""Answers as JSON: chunks of a stream and whole objects, for chat and for plain completions.

A chunk is put together from bytes made once a request; only its text is encoded anew. That is what keeps a
streamed token at a few microseconds.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from triptych.contracts.request import TokenLogprob
from triptych.frontend.choice import Piece
from triptych.processor.tokenizer import Tokenizer

encode = msgspec.json.encode

DONE = b"data: [DONE]\n\n"

Positions = list[tuple[int, TokenLogprob]]


@dataclass
class Said:
    """One choice's whole answer, for requests that are not streamed.

    Its log probabilities are JSON from the start: as objects, millions of them would hold up the process in each of
    Python's garbage collections.
    """

    texts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    _logprobs: dict[str, list[bytes]] = field(default_factory=dict)
    """JSON of each list's entries, by the list's name."""

    def add_logprobs(self, lists: dict[str, list[Any]]) -> int:
        """Take log probabilities in, none of whose lists is empty. Returns how many bytes they have."""
        size = 0
        for name, entries in lists.items():
            part = encode(entries)[1:-1]
            self._logprobs.setdefault(name, []).append(part)
            size += len(part)
        return size

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def logprobs(self) -> dict[str, msgspec.Raw] | None:
        """All lists by name; None where no log probabilities were taken in."""
        lists = {name: msgspec.Raw(b"[%b]" % b",".join(parts)) for name, parts in self._logprobs.items()}
        return lists or None


class Answer(Protocol):
    """The format of one endpoint's answers, for one request."""

    id: str

    def opening(self, index: int) -> bytes:
        """Events that come before the first text of choice ``index``."""
        ...

    def chunks(self, index: int, piece: Piece) -> bytes: ...

    def usage_chunk(self, usage: dict[str, Any]) -> bytes: ...

    def logprob_lists(self, index: int, positions: Positions) -> dict[str, list[Any]]:
        """Return what choice ``index`` says of ``positions``, by the names of its lists."""
        ...

    def whole(self, choices: list[Said], usage: dict[str, Any], extra: dict[str, Any]) -> bytes: ...


class _Base:
    _prefix: str
    _object: str
    _chunk_object: str

    def __init__(self, model: str, tokenizer: Tokenizer, *, null_usage: bool) -> None:
        self.id = f"{self._prefix}-{uuid.uuid4().hex}"
        self._model = model
        self._tokenizer = tokenizer
        self._created = int(time.time())
        head = encode(self._head(self._chunk_object))[:-1]
        self._head_bytes = b"data: " + head + b',"choices":'
        self._tail = b',"usage":null}\n\n' if null_usage else b"}\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}

    def _event(self, choice: dict[str, Any]) -> bytes:
        return self._head_bytes + encode([choice]) + self._tail

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        return self._head_bytes + b'[],"usage":' + encode(usage) + b"}\n\n"

    def _whole(self, choices: list[dict[str, Any]], usage: dict[str, Any], extra: dict[str, Any]) -> bytes:
        return encode({**self._head(self._object), "choices": choices, "usage": usage, **extra})


class ChatAnswer(_Base):
    """``chat.completion`` and ``chat.completion.chunk``."""

    _prefix = "chatcmpl"
    _object = "chat.completion"
    _chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> bytes:
        return self._event(
            {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        )

    def chunks(self, index: int, piece: Piece) -> bytes:
        out = b""
        if piece.logprobs:
            delta = {"content": piece.text}
            logprobs = {**self.logprob_lists(index, piece.logprobs), "refusal": None}
            out = self._event({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None})
        elif piece.text:
            out = b'%b[{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}]%b' % (
                self._head_bytes,
                index,
                encode(piece.text),
                self._tail,
            )
        if piece.finish_reason is not None:
            out += self._event({"index": index, "delta": {}, "logprobs": None, "finish_reason": piece.finish_reason})
        return out

    def whole(self, choices: list[Said], usage: dict[str, Any], extra: dict[str, Any]) -> bytes:
        rows = [
            {
                "index": index,
                "message": {"role": "assistant", "content": said.text, "refusal": None},
                "logprobs": {**logprobs, "refusal": None} if (logprobs := said.logprobs) else None,
                "finish_reason": said.finish_reason,
            }
            for index, said in enumerate(choices)
        ]
        return self._whole(rows, usage, extra)

    def logprob_lists(self, index: int, positions: Positions) -> dict[str, list[Any]]:
        return {"content": [self._position(token, entry) for token, entry in positions]}

    def _position(self, token: int, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._token(other, logprob) for other, logprob in entry.top]
        return {**self._token(token, entry.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._tokenizer.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class CompletionAnswer(_Base):
    """``text_completion``, streamed and whole. ``echoes`` holds each choice's prompt where ``echo`` is asked."""

    _prefix = "cmpl"
    _object = "text_completion"
    _chunk_object = "text_completion"

    def __init__(self, model: str, tokenizer: Tokenizer, *, null_usage: bool, echoes: list[str]) -> None:
        super().__init__(model, tokenizer, null_usage=null_usage)
        self._echoes = echoes
        self._offsets = [len(echo) for echo in echoes]

    def opening(self, index: int) -> bytes:
        echo = self._echoes[index]
        return self._event({"index": index, "text": echo, "logprobs": None, "finish_reason": None}) if echo else b""

    def chunks(self, index: int, piece: Piece) -> bytes:
        if not piece.logprobs and piece.finish_reason is None:
            return b'%b[{"index":%d,"text":%b,"logprobs":null,"finish_reason":null}]%b' % (
                self._head_bytes,
                index,
                encode(piece.text),
                self._tail,
            )
        logprobs = self.logprob_lists(index, piece.logprobs) if piece.logprobs else None
        return self._event(
            {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        )

    def whole(self, choices: list[Said], usage: dict[str, Any], extra: dict[str, Any]) -> bytes:
        rows = [
            {
                "index": index,
                "text": self._echoes[index] + said.text,
                "logprobs": said.logprobs,
                "finish_reason": said.finish_reason,
            }
            for index, said in enumerate(choices)
        ]
        return self._whole(rows, usage, extra)

    def logprob_lists(self, index: int, positions: Positions) -> dict[str, list[Any]]:
        texts = [self._tokenizer.token_text(token) for token, _ in positions]
        offsets = []
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [entry.logprob for _, entry in positions],
            "top_logprobs": [self._top(token, entry) for token, entry in positions],
            "text_offset": offsets,
        }

    def _top(self, token: int, entry: TokenLogprob) -> dict[str, float]:
        """The likeliest ones, and the chosen one where it is not of them, as OpenAI's API has it."""
        top: dict[str, float] = {}
        for other, logprob in (*entry.top, (token, entry.logprob)):
            top.setdefault(self._tokenizer.token_text(other), logprob)
        return top
