"""One request to the span that makes tokens, and the stream of deltas that answers it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from triptych.contracts.tensor import TensorHandle
from triptych.contracts.tokens import TokenIds

FinishReason = Literal["stop", "length", "abort"]
MediaKind = Literal["image", "video", "audio"]
Data = bytes | memoryview
"""A file's bytes; of a large one a read-only view of where they arrived."""
MAX_NUMBERS = 512
"""Of one thing that is said of a medium: enough for the times of 1024 frames, two to a step."""
Numbers = Annotated[tuple[int | float, ...], Meta(max_length=MAX_NUMBERS)]
Metadata = dict[str, Numbers]
"""By the names of a model's own processor: ``{"image_grid_thw": (1, 16, 16)}``."""

GENERATE = "generate"
"""Endpoint of workers whose span ends in ``d``: takes a GenerateRequest, answers TokenDeltas."""


if TYPE_CHECKING:
    _Data = Data
else:  # decoded as a view of the message: a copy of 50 MiB would hold the event loop for 20 ms
    _Data = memoryview


class Guided(msgspec.Struct, frozen=True):
    """A grammar that the output must follow."""

    kind: Literal["json_object", "json_schema"]
    schema: str | None = None
    """The JSON schema as JSON text, for ``json_schema``."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to draw tokens. Names and meanings are those that OpenAI and vLLM share."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 considers every token."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """None: no logprobs; k: the chosen token's and the k most likely ones'."""
    logit_bias: dict[int, float] | None = None
    guided: Guided | None = None
    allowed_token_ids: tuple[int, ...] = ()
    """No other tokens are drawn; empty: all may be."""

    @property
    def needs_history(self) -> bool:
        """Whether drawing depends on which tokens of the text are the answer's, so that no other engine, to which
        those already said are prompt, can go on.

        Presence and frequency penalties count the answer alone, and a grammar starts with it. Repetition penalty
        counts the prompt too, ``min_tokens`` and ``max_tokens`` can be lowered; all else looks at one position.
        """
        return bool(self.presence_penalty or self.frequency_penalty or self.guided is not None)


class Precomputed(msgspec.Struct, frozen=True, array_like=True):
    """What a medium that came as its embedding, computed by the client, holds in ``Medium.data``."""

    shape: tuple[int, int]
    """(tokens, width)."""
    dtype: str
    """``float32``, ``float16`` or ``bfloat16``; little-endian."""


class Medium(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fetched and checked medium: by its name, with what a worker lacks of it.

    It comes with ``data``, with an ``embedding`` to fetch, or, to a worker that is thought to hold what it
    needs, with neither; a worker that does not answers MediaMissing and is asked again with more.
    """

    kind: MediaKind
    content_hash: str
    """Hex name of the content (``media.naming``): the key of every cache, never the URL."""
    format: str
    """File format found by its magic bytes, in Pillow's spelling for images: ``PNG``, ``JPEG``, ``MP4`` ..."""
    data: _Data = b""
    """The medium in its own file format, not decoded yet; of a ``precomputed`` one the embedding's values, in rows."""
    width: int = 0
    """Pixels, as the model will see it (EXIF or display rotation applied)."""
    height: int = 0
    metadata: Metadata = {}
    """What the language model must know of the embedding beside its values. Known from the medium's header
    (``models``)."""
    embedding: TensorHandle | None = None
    """[tokens, hidden]; of media that are handed over by frames, those: uint8 [frames, height, width, 3]."""
    samples: int = 0
    """Length of a sound: samples of one channel at the file's own rate ..."""
    sample_rate: int = 0
    """... which is this, in Hz."""
    decode_rate: int = 0
    """Samples a second that the model is to hear, in Hz; the worker that decodes the sound resamples it."""
    frame_indices: tuple[int, ...] = ()
    """Of a video: which of the file's frames the model sees, ascending, from 0. Decided at the edge by the model's
    rule (``models``) and a part of ``content_hash``."""
    frames: int = 0
    """Of a video: frames in the file."""
    fps: float = 0.0
    """Of a video: frames a second, on average."""
    precomputed: Precomputed | None = None
    """The medium came as its embedding: there is nothing to decode or encode. ``metadata`` is then what came with it,
    of which the language model may be told a part only; sizes, lengths and frames are not known."""


class KvHandle(msgspec.Struct, frozen=True, kw_only=True):
    """The KV cache of a prefilled prompt, waiting at the worker that made it."""

    protocol: str
    """That of ``KvLink.protocol``: only who speaks it can read the cache."""
    request_id: str
    """The prefill's id at its owner; names the cache when it is given back unread."""
    params: bytes
    """msgpack of the engine's own parameters; nobody else reads them."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Prompt in, tokens out: what a worker that hosts ``p`` or ``d`` is asked."""

    id: str
    model: str
    token_ids: TokenIds
    """Prompt with exactly one placeholder token for each medium, in order."""
    sampling: Sampling
    media: list[Medium] = []
    priority: int = 0
    prompt_tokens: int = 0
    """Length of the prompt with every placeholder expanded."""
    said: list[int] = []
    """Tokens of the answer that other workers made and the client has got; the answer goes on after them, and
    ``sampling`` (``max_tokens``, ``min_tokens``) counts them."""
    kv: KvHandle | None = None
    """Prefilled elsewhere: the cache of the prompt (without ``said``) is read from there."""
    origin: str = ""
    """Which frontend sent it: a worker tells each of them what the others have there."""
    salt: str = ""
    """Separates the KV cache of this prompt from that of requests with another one: a digest of the client's
    ``cache_salt``, never the text itself. The names of ``media`` have it in them already."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One position's chosen token and its most likely alternatives."""

    logprob: float
    """Natural logarithm of the chosen token's probability."""
    top: list[tuple[int, float]] = []
    """(token id, logprob), most likely first."""


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """Where a request's time went inside the worker, in seconds; sent with the last delta."""

    preprocess_s: float = 0.0
    """Decoding media and preparing the engine's input."""
    prefill_s: float = 0.0
    """Waiting for the engine's scheduler, encoding media (where the span holds ``e``) and prefilling, until the
    first token."""
    decode_s: float = 0.0
    """First token to last."""
    encode_s: float = 0.0
    """At encode workers, from the frontend's call to the answer; 0 where media were encoded with the prefill."""


class TokenDelta(msgspec.Struct, frozen=True, array_like=True):
    """Tokens made since the previous delta. Exactly one delta of a stream has a ``finish_reason``: the last."""

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    """Prompt length with placeholders expanded and without ``said``, in the first delta; 0 in the others."""
    cached_tokens: int = 0
    """Prompt tokens found in the KV cache, in the first delta."""
    logprobs: list[TokenLogprob] | None = None
    """One entry a token, where asked for."""
    timing: Timing | None = None
    stop_token: bool = False
    """The last of ``token_ids`` ended the text (end of sequence or stop token): not a part of the text."""
