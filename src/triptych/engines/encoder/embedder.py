"""Makes embeddings of decoded media, in batches."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from typing import Any

from triptych.cache.single_flight import is_cancelled
from triptych.contracts.errors import TriptychError, Unavailable
from triptych.contracts.media import DecodableMedium
from triptych.engines.abilities import Encoded
from triptych.engines.encoder.batcher import Batcher
from triptych.engines.encoder.encoder import Encoder
from triptych.engines.encoder.plan import Plan
from triptych.engines.encoder.towers.base import Pixels

log = logging.getLogger("triptych.encoder")


class Embedder:
    """Preprocesses media in the threads of ``preprocessing`` and encodes them in the batches of ``batcher``.

    ``broken`` is set when the accelerator fails. Owns the batcher; the threads are the engine's.
    """

    def __init__(self, encoder: Encoder, batcher: Batcher[Pixels, Any], preprocessing: Executor) -> None:
        self.broken = asyncio.Event()
        self.batcher = batcher
        self._encoder = encoder
        self._preprocessing = preprocessing
        self._closed = False

    async def embed(self, medium: DecodableMedium, decoded: Any, plan: Plan) -> Encoded:
        """Encodes ``decoded``. A failure of the model is logged in full, and told to the client in one line.

        Raises TriptychError if the model makes another shape than ``plan`` has, and Unavailable after ``close``.
        """
        if self._closed:
            raise stopped()
        try:
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._preprocessing, self._encoder.preprocess, medium, decoded)
            _agree(pixels, plan)
            embedding = await self.batcher.submit(pixels, plan.patches)
        except TriptychError:
            raise
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise stopped() from None  # its thread's work was cancelled by the engine's stop, not this request
        except Exception as error:
            if self._closed:
                raise stopped() from error
            log.exception("%s %s could not be encoded", medium.kind, medium.content_hash)
            if self._encoder.is_fatal(error):
                self.broken.set()
            raise TriptychError("the encoder failed on this medium; the worker's log has the cause") from error
        return encoded(embedding, self._encoder.dtype, plan)

    async def close(self) -> None:
        """Closes the batcher. May be called twice."""
        self._closed = True
        await self.batcher.close()


def try_out(encoder: Encoder, medium: DecodableMedium, decoded: Any, plan: Plan) -> None:
    """Encodes ``medium`` to warm the model up. Raises TriptychError if the result does not have the planned shape."""
    (embedding,) = encoder.encode([encoder.preprocess(medium, decoded)])
    encoded(embedding, encoder.dtype, plan)


def stopped() -> Unavailable:
    return Unavailable("the worker is shutting down; try again", code="shutting_down")


def _agree(pixels: Pixels, plan: Plan) -> None:
    """Checks the image processor's grid. Raises TriptychError if it is not the one that follows from the header."""
    for name in pixels.keys() & plan.metadata:
        expected, made = plan.metadata[name], tuple(pixels[name][0].tolist())
        if made != expected:
            raise TriptychError(f"the image processor made {name} {made} of a picture, not {expected}")


def encoded(embedding: Any, dtype: str, plan: Plan) -> Encoded:
    """Wraps ``embedding``'s memory itself: the view keeps the tensor alive. Raises TriptychError for another shape."""
    import torch

    shape = tuple(embedding.shape)
    if shape != plan.shape:
        raise TriptychError(f"the encoder made {list(shape)} of a picture whose place is {list(plan.shape)}")
    data = memoryview(embedding.view(-1).view(torch.uint8).numpy())  # numpy has no bfloat16, hence by bytes
    return Encoded(data=data, shape=shape, dtype=dtype, metadata=plan.metadata)
