"""Server-sent events, read strictly: anything but ``data:`` lines and blank ones fails the test."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stream:
    """A stream that was read to its end."""

    events: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    """Whether it ended with ``[DONE]``."""

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [event for event in self.events if "error" not in event]

    @property
    def error(self) -> dict[str, Any] | None:
        errors = [event["error"] for event in self.events if "error" in event]
        assert len(errors) <= 1, f"one error at most ends a stream, not {errors}"
        assert not errors or "error" in self.events[-1], "nothing follows the error but [DONE]"
        return errors[0] if errors else None

    @property
    def usage(self) -> dict[str, Any] | None:
        return next((chunk["usage"] for chunk in self.chunks if chunk.get("usage")), None)

    def deltas(self, index: int = 0) -> list[str]:
        """Pieces of text of one choice, of chat and of plain completions alike."""
        return [_text(choice) for choice in self.choices(index) if _text(choice)]

    def choices(self, index: int = 0) -> list[dict[str, Any]]:
        return [choice for chunk in self.chunks for choice in chunk["choices"] if choice["index"] == index]

    def text(self, index: int = 0) -> str:
        return "".join(self.deltas(index))

    def finish_reason(self, index: int = 0) -> str | None:
        reasons = [choice["finish_reason"] for choice in self.choices(index) if choice["finish_reason"]]
        assert len(reasons) <= 1, f"a choice has one finish_reason, not {reasons}"
        return reasons[0] if reasons else None


def _text(choice: dict[str, Any]) -> str:
    return choice["text"] if "text" in choice else choice["delta"].get("content") or ""


def parse(body: bytes | str) -> Stream:
    text = body.decode("utf-8") if isinstance(body, bytes) else body
    assert text.endswith("\n\n"), f"the stream ends inside of an event: {text[-80:]!r}"
    stream = Stream()
    for event in text.split("\n\n")[:-1]:
        assert event.startswith("data: "), f"not an event: {event!r}"
        assert "\n" not in event, f"an event of one line was expected: {event!r}"
        assert not stream.done, f"after [DONE] came {event!r}"
        data = event.removeprefix("data: ")
        if data == "[DONE]":
            stream.done = True
        else:
            stream.events.append(json.loads(data))
    return stream
