"""Answers as JSON: chunks of a stream and whole objects.

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

from triptych.contracts.errors import TriptychError
from triptych.frontend.http.asgi import error_body
from triptych.frontend.openai.choice import Piece
from triptych.frontend.openai.text_offsets import Position
from triptych.processor.tokenizer import Tokenizer

encode = msgspec.json.encode

DONE = b"data: [DONE]\n\n"


@dataclass
class ChoiceResult:
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

    def chunks(self, index: int, piece: Piece) -> bytes:
        """Events that one piece of choice ``index`` makes; none where it has nothing to say."""
        ...

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """Events that end a stream, with the usage where it is given."""
        ...

    def failed(self, error: TriptychError) -> bytes:
        """Events that end a stream which fails."""
        ...

    def logprob_lists(self, index: int, positions: Sequence[Position]) -> dict[str, list[Any]]:
        """Return what choice ``index`` says of ``positions``, by the names of its lists."""
        ...

    def whole(self, choices: list[ChoiceResult], usage: dict[str, Any], extra: dict[str, Any]) -> list[bytes]:
        """Return the answer's JSON in pieces.

        Log probabilities may be 100 MB, which one call would copy with the interpreter lock held.
        """
        ...


class JsonAnswer:
    """What the answers of chat and plain completions share."""

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
        """Return what a whole answer says of choice ``index`` beside its log probabilities."""
        raise NotImplementedError

    def _logprobs(self, result: ChoiceResult) -> list[bytes]:
        """Return the JSON member of a choice's log probabilities; choices without a token have none."""
        members = result.logprobs
        return [b',"logprobs":{', *members, self._logprobs_end] if members else [b',"logprobs":null']
