"""Answers as JSON: chunks of a stream and whole objects, for chat and for plain completions.

A chunk is put together from bytes made once a request; only its text is encoded anew. That is what keeps a
streamed token at a few microseconds.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from triptych.frontend.openai.choice import Piece
from triptych.frontend.openai.text_offsets import Position
from triptych.processor.token_bytes import by_id
from triptych.processor.tokenizer import Tokenizer

encode = msgspec.json.encode

DONE = b"data: [DONE]\n\n"


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
    def has_logprobs(self) -> bool:
        return bool(self._logprobs)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def logprobs(self) -> list[bytes]:
        """The JSON members of all lists, in pieces; empty where no log probabilities were taken in."""
        pieces: list[bytes] = []
        for name, parts in self._logprobs.items():
            pieces += [b'%b"%b":[' % (b"," if pieces else b"", name.encode()), parts[0]]
            pieces += (b"," + part for part in parts[1:])
            pieces.append(b"]")
        return pieces


class Answer(Protocol):
    """The format of one endpoint's answers, for one request."""

    id: str

    def opening(self, index: int) -> bytes:
        """Events that come before the first text of choice ``index``."""
        ...

    def chunks(self, index: int, piece: Piece) -> bytes: ...

    def usage_chunk(self, usage: dict[str, Any]) -> bytes: ...

    def logprob_lists(self, index: int, positions: Sequence[Position]) -> dict[str, list[Any]]:
        """Return what choice ``index`` says of ``positions``, by the names of its lists."""
        ...

    def whole(self, choices: list[Said], usage: dict[str, Any], extra: dict[str, Any]) -> list[bytes]:
        """Return the answer's JSON in pieces.

        Log probabilities may be 100 MB, which one call would copy with the interpreter lock held.
        """
        ...


class _Base:
    _prefix: str
    _object: str
    _chunk_object: str
    _logprobs_end = b"}"

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

    def whole(self, choices: list[Said], usage: dict[str, Any], extra: dict[str, Any]) -> list[bytes]:
        head, tail = self._head(self._object), {"usage": usage, **extra}
        rows = [{"index": index, **self._row(index, said)} for index, said in enumerate(choices)]
        if not any(said.has_logprobs for said in choices):
            return [encode({**head, "choices": [{**row, "logprobs": None} for row in rows], **tail})]
        pieces = [encode(head)[:-1], b',"choices":[']
        for row, said in zip(rows, choices, strict=True):
            pieces += [b"," if row["index"] else b"", encode(row)[:-1], *self._logprobs(said), b"}"]
        return [*pieces, b"],", encode(tail)[1:]]

    def _row(self, index: int, said: Said) -> dict[str, Any]:
        """Return what a whole answer says of choice ``index`` beside its log probabilities."""
        raise NotImplementedError

    def _logprobs(self, said: Said) -> list[bytes]:
        """Return the JSON member of a choice's log probabilities; choices without a token have none."""
        members = said.logprobs
        return [b',"logprobs":{', *members, self._logprobs_end] if members else [b',"logprobs":null']


class ChatAnswer(_Base):
    """``chat.completion`` and ``chat.completion.chunk``."""

    _prefix = "chatcmpl"
    _object = "chat.completion"
    _chunk_object = "chat.completion.chunk"
    _logprobs_end = b',"refusal":null}'

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

    def _row(self, index: int, said: Said) -> dict[str, Any]:
        message = {"role": "assistant", "content": said.text, "refusal": None}
        return {"message": message, "finish_reason": said.finish_reason}

    def logprob_lists(self, index: int, positions: Sequence[Position]) -> dict[str, list[Any]]:
        return {"content": list(map(self._position, positions))}

    def _position(self, one: Position) -> dict[str, Any]:
        spelling, own = self._tokenizer.spelling, (one.text, one.data)
        top = []
        for token, logprob in one.entry.top:
            text, data = own if token == one.token else spelling(token)
            top.append({"token": text, "logprob": logprob, "bytes": list(data)})
        logprob = one.entry.logprob
        return {"token": one.text, "logprob": logprob, "bytes": list(one.data), "top_logprobs": top}


class CompletionAnswer(_Base):
    """``text_completion``, streamed and whole. ``echoes`` holds each choice's prompt where ``echo`` is asked."""

    _prefix = "cmpl"
    _object = "text_completion"
    _chunk_object = "text_completion"

    def __init__(self, model: str, tokenizer: Tokenizer, *, null_usage: bool, echoes: list[str]) -> None:
        super().__init__(model, tokenizer, null_usage=null_usage)
        self._echoes = echoes

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

    def _row(self, index: int, said: Said) -> dict[str, Any]:
        return {"text": self._echoes[index] + said.text, "finish_reason": said.finish_reason}

    def logprob_lists(self, index: int, positions: Sequence[Position]) -> dict[str, list[Any]]:
        echoed = len(self._echoes[index])
        return {
            "tokens": [one.text for one in positions],
            "token_logprobs": [one.entry.logprob for one in positions],
            "top_logprobs": list(map(self._top, positions)),
            "text_offset": [echoed + one.offset for one in positions],
        }

    def _top(self, one: Position) -> dict[str, float]:
        """The likeliest ones, and the chosen one where it is not of them, as OpenAI's API has it.

        Each has a key of its own: of tokens with equal texts, all but the first go by their ids.
        """
        top: dict[str, float] = {}
        for token, logprob in one.entry.top:
            if token == one.token:
                top[one.text] = logprob
                continue
            text = self._tokenizer.spelling(token).text
            top[by_id(token) if text in top or text == one.text else text] = logprob
        top.setdefault(one.text, one.entry.logprob)
        return top
