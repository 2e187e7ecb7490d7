"""Defines the requests to encode and prefill workers, and their answers."""

from __future__ import annotations

import msgspec

from triptych.contracts.answer import TokenDelta
from triptych.contracts.media import Medium
from triptych.contracts.request import KvHandle
from triptych.contracts.tensor import TensorHandle

ENCODE = "encode"
"""The endpoint of workers whose span is ``e``. It takes an EncodeRequest and answers one EncodeAnswer."""
PREFILL = "prefill"
"""The endpoint of workers whose span ends in ``p``. It takes a GenerateRequest and answers one PrefillAnswer."""
RELEASE = "release"
"""The endpoint of workers that hand over embeddings or KV caches. It takes a Release and answers nothing."""
FILES = "files"
"""The endpoint of every worker that takes a FilesRequest or nothing, and answers FilePieces, each file's in order."""
METRICS = "metrics"
"""The endpoint of every worker that takes nothing and answers one list of Metric."""


class FilesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for descriptive files of the worker's model."""

    names: tuple[str, ...] = ()
    """The names of the wanted files; an empty tuple asks for all of them."""


class FilePiece(msgspec.Struct, frozen=True):
    """A part of one file, at most ``models.files.PIECE_BYTES``."""

    name: str
    data: bytes


class EncodeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for the embeddings of media."""

    id: str
    model: str
    media: list[Medium]


class EncodedMedium(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The embedding of one medium, ready to be fetched."""

    content_hash: str
    embedding: TensorHandle | None = None
    """None if the embedding lies in a store that the engines share (vLLM's EC connector), under ``content_hash``."""
    cached: bool = False
    """Whether the embedding was cached, so that nothing was encoded for it."""


class EncodeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to an EncodeRequest: one entry for each medium, in order."""

    media: list[EncodedMedium]
    preprocess_s: float = 0.0
    encode_s: float = 0.0


class PrefillAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a prefill worker: the first token, and where the prompt's KV cache is."""

    delta: TokenDelta
    """The first token, or no token if the decoding engine must draw it itself. With a ``finish_reason`` it is the whole
    answer. By rendezvous the decode worker sends all tokens, this one included."""
    kv: KvHandle | None = None
    """None if the answer is over, or if the cache was handed over in a room (``GenerateRequest.give``)."""


class Release(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Names the embeddings and KV caches that will not be fetched any more. Unknown names change nothing."""

    kv: KvHandle | None = None
    embeddings: list[TensorHandle] = []
