"""Makes a digest of a request's ``cache_salt``, which separates the caches of different clients. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from triptych.contracts.errors import BadRequest
from triptych.contracts.request import Guided

_SCHEME = b"triptych.cache_salt.1"
_DIGEST_BYTES = 16


def salt_of(given: str | None) -> str:
    """Returns the digest of a salt: 32 hex digits, equal in every process; "" where there is no salt.

    No worker, log or event ever gets the text itself: with it, others could read the caches. Raises BadRequest for an
    empty salt: its sender asks for separation, and would share with everybody.
    """
    if given is None:
        return ""
    if not given:
        raise BadRequest("cache_salt must not be empty: leave it out, or give a secret text", param="cache_salt")
    return hashlib.blake2b(given.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES, key=_SCHEME).hexdigest()


def salted_grammar(guided: Guided | None, salt: str) -> Guided | None:
    """Returns ``guided`` with the salt in a comment of its schema, which does not change what the schema allows.

    Checked schemas and compiled grammars are cached by the schema's text, so the salt separates them.
    """
    if guided is None or guided.schema is None or not salt:
        return guided
    schema = {**msgspec.json.decode(guided.schema), "$comment": salt}
    return msgspec.structs.replace(guided, schema=msgspec.json.encode(schema).decode())
