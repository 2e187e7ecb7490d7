"""Writes the answers of ``POST /v1/completions``, whole and as stream events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triptych.frontend.openai.answers import ChoiceResult, JsonAnswer, encode
from triptych.frontend.openai.choice import Piece
from triptych.frontend.openai.text_offsets import Position
from triptych.processor.token_bytes import by_id
from triptych.processor.tokenizer import Tokenizer


class CompletionAnswer(JsonAnswer):
    """Writes ``text_completion`` objects, streamed and whole."""

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

    def _row(self, index: int, result: ChoiceResult) -> dict[str, Any]:
        return {"text": self._echoes[index] + result.text, "finish_reason": result.finish_reason}

    def logprob_lists(self, index: int, positions: Sequence[Position]) -> dict[str, list[Any]]:
        echoed = len(self._echoes[index])
        return {
            "tokens": [position.text for position in positions],
            "token_logprobs": [position.entry.logprob for position in positions],
            "top_logprobs": list(map(self._top, positions)),
            "text_offset": [echoed + position.offset for position in positions],
        }

    def _top(self, position: Position) -> dict[str, float]:
        """Returns the most likely tokens and the chosen one with their log probabilities, as OpenAI's API does.

        Each has its own key: of tokens with equal texts, all but the first are named by their ids.
        """
        top: dict[str, float] = {}
        for token, logprob in position.entry.top:
            if token == position.token:
                top[position.text] = logprob
                continue
            text = self._tokenizer.spelling(token).text
            top[by_id(token) if text in top or text == position.text else text] = logprob
        top.setdefault(position.text, position.entry.logprob)
        return top
