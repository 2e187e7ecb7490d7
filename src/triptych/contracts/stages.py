"""Requests to the spans that end before ``d``, and what they answer."""

from __future__ import annotations

import msgspec

from triptych.contracts.answer import TokenDelta
from triptych.contracts.media import Medium
from triptych.contracts.request import KvHandle
from triptych.contracts.tensor import TensorHandle

ENCODE = "encode"
"""Endpoint of workers whose span is ``e``: takes an EncodeRequest, answers one EncodeAnswer."""
PREFILL = "prefill"
"""Endpoint of workers whose span ends in ``p``: takes a GenerateRequest, answers one PrefillAnswer."""
RELEASE = "release"
"""Endpoint of workers that hand something over: takes a Release, answers nothing."""
FILES = "files"
"""Endpoint of every worker: takes a FilesRequest or nothing, answers FilePieces, a file's in order."""
METRICS = "metrics"
"""Endpoint of every worker: takes nothing, answers one list of Metric."""


class FilesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptive files of the worker's model."""

    names: tuple[str, ...] = ()
    """None: all that there are."""


class FilePiece(msgspec.Struct, frozen=True):
    """A part of one file, at most ``models.files.PIECE_BYTES``."""

    name: str
    data: bytes


class EncodeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Media in, embeddings out."""

    id: str
    model: str
    media: list[Medium]


class EncodedMedium(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The embedding of one medium, ready to be fetched."""

    content_hash: str
    embedding: TensorHandle | None = None
    """None: it lies in a store that the engines share (vLLM's EC connector), under ``content_hash``."""
    cached: bool = False
    """It was there already; nothing was encoded for it."""


class EncodeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to an EncodeRequest: one entry for each medium, in order."""

    media: list[EncodedMedium]
    preprocess_s: float = 0.0
    encode_s: float = 0.0


class PrefillAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a prefill: its first token, and where the prompt's KV cache is."""

    delta: TokenDelta
    """The first token, or no token where the decoding engine must draw it itself. With a ``finish_reason`` it
    is the whole answer. By rendezvous the decode says all tokens, also this one."""
    kv: KvHandle | None = None
    """None: the answer is over, or the cache was handed over in a room (``GenerateRequest.give``)."""


class Release(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Names everything that nobody will fetch any more. Unknown names change nothing."""

    kv: KvHandle | None = None
    embeddings: list[TensorHandle] = []
