"""Decodes large bodies in pieces, because one call of the JSON decoder would hold the interpreter lock for long.

A large body is mostly a few long texts (prompts, media as ``data:`` URLs) and lists of token ids. These are found
first and decoded apart, piece by piece. A name stands for each of them in the rest of the body, which is small and
is decoded at once. The ``data:`` URLs are not copied: they stay in the body.
"""

from __future__ import annotations

import re
import secrets
from array import array
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import msgspec

from triptych.config.requests import RequestLimits
from triptych.contracts.errors import BadRequest, PayloadTooLarge
from triptych.contracts.media import Data
from triptych.contracts.tokens import TokenIds
from triptych.frontend.openai.body.long_values import LongValue, Scan, pieces_of_numbers, pieces_of_text
from triptych.frontend.openai.body.one_text import parse_one_text
from triptych.frontend.openai.decoder import RequestDecoder
from triptych.frontend.openai.invalid.invalid_json import moved, not_json, offset_of
from triptych.frontend.openai.limits import TOKEN_ID_LISTS, check_token_ids
from triptych.frontend.openai.parts import AudioData, AudioPart, ImagePart, ImageUrl, MediaUrl, VideoPart
from triptych.frontend.openai.request import GenerationFields
from triptych.media.fetch.data_url import LongUrl

T = TypeVar("T", bound=GenerationFields)

INLINE_BODY_BYTES = 512 << 10
"""Bodies up to this are decoded at once (0.4 ms), if they hold few values."""
INLINE_VALUES = 8_192
"""The limit on lists and objects of a body that is decoded at once: so many take a millisecond."""
INLINE_COMMAS = 2 * INLINE_VALUES
"""The limit on commas of such a body: so many numbers or texts take a millisecond. Commas within texts count too:
program code of 240 KB has 10,000."""
MANY_VALUES_BYTES = 3 * INLINE_VALUES
"""Bodies up to this size cannot hold more values."""
KEPT_BYTES = 2 << 20
"""The limit on bytes of the rest of a body, which is decoded at once (3 ms). Over it, shorter texts are taken out as
well."""
MAX_KEPT_BYTES = 8 << 20
_LONG_TEXT_BYTES = (64 << 10, 512, 0)
_COUNTED_BYTES = 32 << 10
"""The number of bytes that are counted at a time, which fit into the processor's cache."""
_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b",[{")
_TEXT = msgspec.json.Decoder(str)
_NUMBERS = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]])


def parse_quick(body: Data, parse: RequestDecoder[T]) -> T | None:
    """Returns ``parse(body)``, or None if that may take more than a millisecond (see ``parse_large``)."""
    if len(body) <= MANY_VALUES_BYTES:
        return parse(body)
    if len(body) <= INLINE_BODY_BYTES and (request := parse_one_text(body, parse)) is not None:
        return request
    return parse.quick(body) if is_small(body) else None


def is_small(body: Data) -> bool:
    """Tells whether decoding ``body`` takes a millisecond at most."""
    if len(body) <= MANY_VALUES_BYTES:
        return True
    if len(body) > INLINE_BODY_BYTES:
        return False
    pieces = (bytes(body[at : at + _COUNTED_BYTES]) for at in range(0, len(body), _COUNTED_BYTES))
    structure = b"".join([piece.translate(None, _NO_STRUCTURE) for piece in pieces])
    commas = structure.count(b",")
    return len(structure) - commas <= INLINE_VALUES and commas <= INLINE_COMMAS


def parse_large(body: Data, parse: RequestDecoder[T], limits: RequestLimits) -> T:
    """Returns ``parse(body)``, with the long URLs of its media as ``LongUrl`` views of ``body``. Run it in a thread.

    Raises BadRequest, and PayloadTooLarge for a body with too many values.
    """
    scan = Scan(body, limits.max_json_values)
    scan.run()
    taken = _taken_out(scan.found, len(body))
    if not taken:
        return parse(body)
    names = _Names(taken)
    try:
        request = parse(_shortened(body, taken, names))
    except BadRequest as error:
        raise _as_sent(error, body, taken, names) from None
    request.check_counts(limits)  # before anything is put back: a refused request needs none of it
    return _Restore(body, names, limits.max_text_bytes).into(request)


def _taken_out(found: list[LongValue], size: int) -> list[LongValue]:
    """Returns those of the long values that are taken out, so that little is left. Raises PayloadTooLarge."""
    left = size
    taken: list[LongValue] = []
    for long in _LONG_TEXT_BYTES:
        taken = [value for value in found if value.kind == "numbers" or value.end - value.begin > long]
        left = size - sum(value.end - value.begin for value in taken)
        if left <= KEPT_BYTES:
            return taken
    if left > MAX_KEPT_BYTES:
        raise PayloadTooLarge(
            f"the body holds {left:,} bytes beside its texts and lists of token ids; the limit is {MAX_KEPT_BYTES:,}",
            code="body_too_large",
        )
    return taken


class _Names:
    """Names that stand for long values in the shortened body. No client can guess them."""

    def __init__(self, taken: list[LongValue]) -> None:
        self._secret = secrets.token_hex(12)
        self.mark = secrets.randbits(62)
        """The first entry of a list that stands for a list of numbers; the second is the index of that list."""
        self.taken = taken

    def of(self, index: int) -> bytes:
        if self.taken[index].kind == "text":
            return f"{self._secret}{index:08x}".encode()
        return f"{self.mark},{index}".encode()

    def hidden(self, message: str) -> str:
        """Returns ``message`` without names of this kind."""
        return re.sub(self._secret + "[0-9a-f]{8}", "...", message)

    def value(self, name: str) -> LongValue | None:
        """Returns the text that ``name`` stands for; None if it stands for none."""
        return self.taken[int(name[24:], 16)] if len(name) == 32 and name.startswith(self._secret) else None


def _shortened(body: Data, taken: list[LongValue], names: _Names) -> bytes:
    parts: list[Data] = []
    at = 0
    for index, value in enumerate(taken):
        parts += [body[at : value.begin], names.of(index)]
        at = value.end
    return b"".join([*parts, body[at:]])


def _as_sent(error: BadRequest, body: Data, taken: list[LongValue], names: _Names) -> BadRequest:
    """Returns an error about the shortened body as one about the body that was sent."""
    message = names.hidden(error.message)
    if (at := offset_of(message)) is not None:
        for index, value in enumerate(taken):
            if at < value.begin + len(names.of(index)):
                break
            at += value.end - value.begin - len(names.of(index))
        message = moved(message, body, at)
    return BadRequest(message, param=error.param, code=error.code)


def _in_body(error: BadRequest, body: Data, begin: int) -> BadRequest:
    """Returns an error about a piece that begins at ``begin`` as one about the whole body."""
    at = offset_of(error.message)
    message = error.message if at is None else moved(error.message, body, begin + at)
    return BadRequest(message, param=error.param, code=error.code)


class _Restore:
    """Puts long values back where their names stand."""

    def __init__(self, body: Data, names: _Names, max_text_bytes: int) -> None:
        self._body = memoryview(body)
        self._names = names
        self._max_text_bytes = max_text_bytes
        self._place: list[str] = []

    def into(self, request: T) -> T:
        """Puts all values into ``request``, and returns it.

        Raises BadRequest for texts that are not valid, and for too many token ids outside of prompts.
        """
        for name in TOKEN_ID_LISTS:
            self._check_ids(name, getattr(request, name))
        if request.ignored is not None:
            request.ignored.rename(self._shown)
        request.restore_token_ids(self._prompt)
        self._walk(request)
        return request

    def _check_ids(self, name: str, ids: Any) -> None:
        """Counts token ids in the body itself: making a list of a million would stop all streams for 0.2 s."""
        if (value := self._list(ids)) is not None:
            check_token_ids(name, sum(1 + piece.count(b",") for piece in pieces_of_numbers(self._body, value)))

    def _walk(self, value: Any) -> Any:
        """Returns ``value`` with all long values put back. Structs and lists are changed in place."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            if (numbers := self._numbers(value)) is not None:
                return numbers.tolist()
            value[:] = [self._at(f"[{index}]", item) for index, item in enumerate(value)]
        elif isinstance(value, dict):
            return {self._walk(key): self._at(f".{key}"[:64], member) for key, member in value.items()}
        elif isinstance(value, msgspec.Struct):
            for name in value.__struct_fields__:
                if not self._url(value, name):
                    setattr(value, name, self._at(f".{name}", getattr(value, name)))
        return value

    def _at(self, step: str, value: Any) -> Any:
        if not isinstance(value, str | list | dict | msgspec.Struct):
            return value
        self._place.append(step)
        value = self._walk(value)
        self._place.pop()
        return value

    def _text(self, name: str) -> str:
        value = self._names.value(name)
        if value is None:
            return name
        if value.end - value.begin > self._max_text_bytes:
            raise self._too_long(value.end - value.begin)
        return "".join(self._pieces(value))

    def _pieces(self, value: LongValue) -> Iterator[str]:
        at = value.begin
        for piece in pieces_of_text(self._body, value):
            try:
                yield _TEXT.decode(quoted := b'"' + piece + b'"')
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                refusal = not_json(error, quoted)
                raise _in_body(refusal, self._body, at - 1) from None
            at += len(piece)

    def _shown(self, name: str) -> str:
        """Returns the beginning of a long field name, to be shown only."""
        value = self._names.value(name)
        if value is None:
            return name
        return next(self._pieces(value))

    def _too_long(self, size: int) -> PayloadTooLarge:
        place = "".join(self._place).removeprefix(".")
        return PayloadTooLarge(
            f"{place} has {size:,} bytes; the limit of one text is {self._max_text_bytes:,} (--max-text-bytes)",
            param=place,
            code="text_too_large",
        )

    def _url(self, owner: msgspec.Struct, field: str) -> bool:
        """Sets a medium's URL to a view of the body, if it is long. Returns whether it is."""
        if not isinstance(owner, ImageUrl | MediaUrl | AudioData | ImagePart | VideoPart | AudioPart):
            return False
        name = getattr(owner, field)
        value = self._names.value(name) if isinstance(name, str) else None
        if value is None or value.escaped or value.end - value.begin <= _LONG_TEXT_BYTES[0]:
            return False
        prefix = "data:;base64," if isinstance(owner, AudioData) else ""
        setattr(owner, field, LongUrl(prefix, self._body[value.begin : value.end]))
        return True

    def _prompt(self, prompt: Any) -> Any:
        if not isinstance(prompt, list):
            return prompt
        if (numbers := self._numbers(prompt)) is not None:
            return numbers
        return [item if (ids := self._numbers(item)) is None else ids for item in prompt]

    def _list(self, value: Any) -> LongValue | None:
        """Returns the list of numbers that ``value`` stands for; None if it stands for none."""
        named = isinstance(value, list) and len(value) == 2 and value[0] == self._names.mark
        return self._names.taken[value[1]] if named else None

    def _numbers(self, value: Any) -> TokenIds | None:
        if (taken := self._list(value)) is None:
            return None
        ids, begin = TokenIds(), taken.begin - 1
        try:
            for piece in pieces_of_numbers(self._body, taken):
                ids.extend(array("I", _NUMBERS.decode(piece)))
                begin += len(piece) - 1
        except msgspec.ValidationError:
            raise BadRequest("prompt: token ids must be between 0 and 4294967295", param="prompt") from None
        except msgspec.DecodeError as error:
            raise _in_body(not_json(error, piece), self._body, begin) from None
        return ids
