"""Writes answers as JSON: the chunks of a stream, and whole objects.

A chunk is put together from bytes that are made once a request; only its text is encoded for each chunk. This keeps a
streamed token at a few microseconds.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from triptych.contracts.errors import TriptychError
from triptych.frontend.http.asgi import error_body
from triptych.frontend.openai.choice import Piece
from triptych.frontend.openai.text_offsets import Position
from triptych.processor.tokenizer import Tokenizer

encode = msgspec.json.encode

DONE = b"data: [DONE]\n\n"


@dataclass
class ChoiceResult:
    """The whole text of one choice, for requests that are not streamed.

    Its log probabilities are kept as JSON: as objects, millions of them would stop the process in every garbage
    collection of Python.
    """

    texts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    _logprobs: dict[str, list[bytes]] = field(default_factory=dict)
    """The JSON of each list's entries, by the name of the list."""

    def add_logprobs(self, lists: dict[str, list[Any]]) -> int:
        """Adds log probabilities, whose lists are not empty. Returns their size as JSON, in bytes."""
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
        """The JSON members of all lists, in pieces; empty if there are no log probabilities."""
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
        """Returns the events that come before the first text of choice ``index``."""
        ...

    def chunks(self, index: int, piece: Piece) -> bytes:
        """Returns the events that one piece of choice ``index`` makes; empty if it adds nothing."""
        ...

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """Returns the events that end a stream, with the usage if it is given."""
        ...

    def failed(self, error: TriptychError) -> bytes:
        """Returns the events that end a stream with an error."""
        ...

    def logprob_lists(self, index: int, positions: Sequence[Position]) -> dict[str, list[Any]]:
        """Returns the log probabilities of ``positions`` as JSON values, by the name of each list."""
        ...

    def whole(self, choices: list[ChoiceResult], usage: dict[str, Any], extra: dict[str, Any]) -> list[bytes]:
        """Returns the JSON of the whole answer in pieces.

        Log probabilities may be 100 MB, and joining them would hold the interpreter lock.
        """
        ...


class JsonAnswer:
    """The common parts of the answers of chat and plain completions."""

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

    def end(self, usage: dict[str, Any] | None) -> bytes:
        return DONE if usage is None else self._head_bytes + b'[],"usage":' + encode(usage) + b"}\n\n" + DONE

    def failed(self, error: TriptychError) -> bytes:
        return b"data: " + error_body(error) + b"\n\n" + DONE

    def whole(self, choices: list[ChoiceResult], usage: dict[str, Any], extra: dict[str, Any]) -> list[bytes]:
        head, tail = self._head(self._object), {"usage": usage, **extra}
        rows = [{"index": index, **self._row(index, result)} for index, result in enumerate(choices)]
        if not any(result.has_logprobs for result in choices):
            return [encode({**head, "choices": [{**row, "logprobs": None} for row in rows], **tail})]
        pieces = [encode(head)[:-1], b',"choices":[']
        for row, result in zip(rows, choices, strict=True):
            pieces += [b"," if row["index"] else b"", encode(row)[:-1], *self._logprobs(result), b"}"]
        return [*pieces, b"],", encode(tail)[1:]]

    def _row(self, index: int, result: ChoiceResult) -> dict[str, Any]:
        """Returns the members of choice ``index`` in a whole answer, without its log probabilities."""
        raise NotImplementedError

    def _logprobs(self, result: ChoiceResult) -> list[bytes]:
        """Returns the JSON member of a choice's log probabilities; null for a choice without a token."""
        members = result.logprobs
        return [b',"logprobs":{', *members, self._logprobs_end] if members else [b',"logprobs":null']
