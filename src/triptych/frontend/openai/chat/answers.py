"""Writes the answers of ``POST /v1/chat/completions``, whole and as stream events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triptych.frontend.openai.answers import ChoiceResult, JsonAnswer, encode
from triptych.frontend.openai.choice import Piece
from triptych.frontend.openai.text_offsets import Position


class ChatAnswer(JsonAnswer):
    """Writes ``chat.completion`` and ``chat.completion.chunk`` objects."""

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

    def _row(self, index: int, result: ChoiceResult) -> dict[str, Any]:
        message = {"role": "assistant", "content": result.text, "refusal": None}
        return {"message": message, "finish_reason": result.finish_reason}

    def logprob_lists(self, index: int, positions: Sequence[Position]) -> dict[str, list[Any]]:
        return {"content": list(map(self._position, positions))}

    def _position(self, position: Position) -> dict[str, Any]:
        spelling, own = self._tokenizer.spelling, (position.text, position.data)
        top = []
        for token, logprob in position.entry.top:
            text, data = own if token == position.token else spelling(token)
            top.append({"token": text, "logprob": logprob, "bytes": list(data)})
        logprob = position.entry.logprob
        return {"token": position.text, "logprob": logprob, "bytes": list(position.data), "top_logprobs": top}
