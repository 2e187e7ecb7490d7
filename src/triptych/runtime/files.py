"""Serves the endpoint ``files``: a model's descriptive files, for frontends that do not have the checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from triptych.contracts.card import ModelCard
from triptych.contracts.errors import BadRequest, NotFound
from triptych.contracts.stages import FilePiece, FilesRequest
from triptych.models import files
from triptych.planes.request.base import Payload

_REQUEST = msgspec.msgpack.Decoder(FilesRequest)
_ENCODER = msgspec.msgpack.Encoder()


async def pieces(card: ModelCard, payload: Payload) -> AsyncGenerator[bytes, None]:
    """Yields FilePieces of the files that ``payload`` (a FilesRequest, or nothing) names and the checkpoint has.

    Raises BadRequest for names that are not in ``models.files.NAMES``, and NotFound if the files are too large.
    """
    names = _wanted(payload)
    if not card.files_digest:
        raise NotFound(f"the files of {card.name} are too large to be given away, or were gone when the worker started")
    for name in names:
        path, offset, data = Path(card.path, name), 0, b""
        while offset == 0 or len(data) == files.PIECE_BYTES:
            try:
                data = await asyncio.to_thread(files.read_piece, path, offset)
            except FileNotFoundError:
                break
            except OSError as error:
                raise NotFound(f"{name} of {card.name} cannot be read: {error.strerror}") from error
            yield _ENCODER.encode(FilePiece(name, data))
            offset += len(data)
            if not data:
                break


def _wanted(payload: Payload) -> tuple[str, ...]:
    try:
        names = _REQUEST.decode(payload).names if payload else ()
    except msgspec.MsgspecError as error:
        raise BadRequest(f"the request does not fit this worker's version: {error}") from error
    if unknown := sorted(set(names) - set(files.NAMES)):
        raise BadRequest(f"names: {unknown[0]!r} is not given away; these are: {', '.join(files.NAMES)}")
    return names or files.NAMES
