"""Decodes request bodies into their schema classes, and refuses wrong types by name.

The classes take only their own fields. A body with other fields is sifted first by the tables in ``fields``, which
decide how each is treated.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from triptych.contracts.media import Data
from triptych.frontend.openai.fields.field import Fields
from triptych.frontend.openai.fields.sift import sift
from triptych.frontend.openai.fields.table import REFUSED_TYPES
from triptych.frontend.openai.invalid.invalid_json import not_json
from triptych.frontend.openai.invalid.invalid_type import wrong_type
from triptych.frontend.openai.request import GenerationFields

T = TypeVar("T", bound=GenerationFields)
_HAS_OTHERS = "Object contains unknown field"


class RequestDecoder(Generic[T]):
    """Decodes the bodies of one endpoint."""

    def __init__(self, schema: type[T], fields: Fields) -> None:
        self._schema, self._decoder = schema, msgspec.json.Decoder(schema)
        self._fields = fields

    def __call__(self, body: Data) -> T:
        """Decodes a body. Raises BadRequest with the field at fault."""
        request = self.quick(body)
        return self._sifted(body) if request is None else request

    def quick(self, body: Data) -> T | None:
        """Decodes a body, or returns None if it has fields that the schema does not hold: those take longer."""
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            if str(error).startswith(_HAS_OTHERS):
                return None
            raise wrong_type(error, body, self._schema, REFUSED_TYPES) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_json(error, body) from None

    def _sifted(self, body: Data) -> T:
        try:
            sifted, ignored = sift(body, self._fields)
            request = self._decoded(sifted, body)
        except msgspec.ValidationError as error:
            raise wrong_type(error, body, self._schema, REFUSED_TYPES) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_json(error, body) from None
        if ignored.count:
            request.__dict__["ignored"] = ignored
        return request

    def _decoded(self, sifted: bytes, body: Data) -> T:
        try:
            return self._decoder.decode(sifted)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            msgspec.json.decode(body)  # raises the same error, with the place in the body as it was sent
            raise
