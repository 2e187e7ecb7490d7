"""A request's ``cache_salt``: whose cached work it may meet. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from triptych.contracts.errors import BadRequest
from triptych.contracts.request import Guided

_SCHEME = b"triptych.cache_salt.1"
_DIGEST_BYTES = 16


def salt_of(given: str | None) -> str:
    """Return 32 hex digits that stand for the salt ``given``, alike in every process; "" where there is none.

    No worker, log or event ever has the text itself: whoever knew it could meet its caches. Raises BadRequest for an
    empty one, by which its sender would share with everybody though it asked not to.
    """
    if given is None:
        return ""
    if not given:
        raise BadRequest("cache_salt must not be empty: leave it out, or give a secret text", param="cache_salt")
    return hashlib.blake2b(given.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES, key=_SCHEME).hexdigest()


def salted_grammar(guided: Guided | None, salt: str) -> Guided | None:
    """``guided`` with ``salt`` in a comment of its schema: verdicts on schemas and compiled grammars are kept by its
    text. What it allows stays the same."""
    if guided is None or guided.schema is None or not salt:
        return guided
    schema = {**msgspec.json.decode(guided.schema), "$comment": salt}
    return msgspec.structs.replace(guided, schema=msgspec.json.encode(schema).decode())
